// An OpenID provider for tests: zitadel/oidc's provider over its own in-memory storage, with keys that change when they are told to.
//
// POST /keys/announce shows a new key beside the others; POST /keys/use signs with the newest; POST /keys/retire takes the others
// away. The client sid1 gets tokens by client credentials.
package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/op"
)

type key struct {
	id      string
	private *rsa.PrivateKey
}

func (k key) ID() string                                  { return k.id }
func (k key) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (k key) Key() any                                    { return k.private }

type public struct{ key }

func (p public) Algorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (p public) Use() string                        { return "sig" }
func (p public) Key() any                           { return &p.private.PublicKey }

type rotating struct {
	*storage.Storage
	lock   sync.Mutex
	made   int
	keys   []key
	signer int
}

func (r *rotating) announce() {
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		log.Fatal(err)
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	r.made++
	r.keys = append(r.keys, key{fmt.Sprintf("key-%d", r.made), private})
}

func (r *rotating) use() {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.signer = len(r.keys) - 1
}

func (r *rotating) retire() {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.keys, r.signer = r.keys[r.signer:r.signer+1], 0
}

func (r *rotating) SigningKey(context.Context) (op.SigningKey, error) {
	r.lock.Lock()
	defer r.lock.Unlock()
	return r.keys[r.signer], nil
}

func (r *rotating) KeySet(context.Context) ([]op.Key, error) {
	r.lock.Lock()
	defer r.lock.Unlock()
	var set []op.Key
	for _, key := range r.keys {
		set = append(set, public{key})
	}
	return set, nil
}

type jwtClient struct{ op.Client }

func (jwtClient) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }

func (r *rotating) ClientCredentials(ctx context.Context, id, secret string) (op.Client, error) {
	client, err := r.Storage.ClientCredentials(ctx, id, secret)
	if err != nil {
		return nil, err
	}
	return jwtClient{client}, nil
}

func main() {
	listen := flag.String("listen", "", "the address to listen on")
	issuer := flag.String("issuer", "", "as tokens name it")
	flag.Parse()
	keys := &rotating{Storage: storage.NewStorage(storage.NewUserStore(*issuer))}
	keys.announce()
	router := exampleop.SetupServer(*issuer, keys, slog.Default(), false)
	change := func(path string, how func()) {
		router.Post("/keys/"+path, func(http.ResponseWriter, *http.Request) { how() })
	}
	change("announce", keys.announce)
	change("use", keys.use)
	change("retire", keys.retire)
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("serving on %s", listener.Addr())
	log.Fatal(http.Serve(listener, router))
}
