// Open Policy Agent behind Envoy's own API: decides what it is asked by data.envoy.authz.allow of a Rego policy, with the input that
// OPA's plugin for Envoy gives policies. The plugin itself is not among published modules; OPA and Envoy's API are.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/url"
	"os"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	httptype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/open-policy-agent/opa/v1/rego"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
)

type server struct {
	auth.UnimplementedAuthorizationServer
	query rego.PreparedEvalQuery
}

// decision is what a policy says where it says more than yes or no.
type decision struct {
	Allowed         bool              `json:"allowed"`
	Headers         map[string]string `json:"headers"`
	HeadersToRemove []string          `json:"request_headers_to_remove"`
	ResponseHeaders map[string]string `json:"response_headers_to_add"`
	Status          int32             `json:"http_status"`
	Body            string            `json:"body"`
}

func main() {
	listen := flag.String("listen", "127.0.0.1:9191", "where to serve Envoy's Authorization")
	policy := flag.String("policy", "", "the Rego file")
	flag.Parse()
	text, err := os.ReadFile(*policy)
	check(err)
	prepared, err := rego.New(
		rego.Query("data.envoy.authz.allow"),
		rego.Module(*policy, string(text)),
	).PrepareForEval(context.Background())
	check(err)
	listener, err := net.Listen("tcp", *listen)
	check(err)
	registry := grpc.NewServer()
	auth.RegisterAuthorizationServer(registry, &server{query: prepared})
	log.Printf("serving on %s", listener.Addr())
	check(registry.Serve(listener))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func (s *server) Check(ctx context.Context, request *auth.CheckRequest) (*auth.CheckResponse, error) {
	input, err := inputOf(request)
	if err != nil {
		return nil, err
	}
	results, err := s.query.Eval(ctx, rego.EvalInput(input))
	if err != nil {
		return nil, err
	}
	var found decision
	if len(results) > 0 && len(results[0].Expressions) > 0 {
		switch value := results[0].Expressions[0].Value.(type) {
		case bool:
			found.Allowed = value
		default:
			text, err := json.Marshal(value)
			if err == nil {
				err = json.Unmarshal(text, &found)
			}
			if err != nil {
				return nil, fmt.Errorf("the decision %v is no decision: %w", value, err)
			}
		}
	}
	log.Printf("%s asks about %s: %v", request.GetAttributes().GetSource().GetPrincipal(),
		request.GetAttributes().GetDestination().GetPrincipal(), found.Allowed)
	return answer(found), nil
}

func answer(found decision) *auth.CheckResponse {
	if found.Allowed {
		return &auth.CheckResponse{
			Status: &status.Status{Code: int32(codes.OK)},
			HttpResponse: &auth.CheckResponse_OkResponse{OkResponse: &auth.OkHttpResponse{
				Headers:              options(found.Headers),
				HeadersToRemove:      found.HeadersToRemove,
				ResponseHeadersToAdd: options(found.ResponseHeaders),
			}},
		}
	}
	if found.Status == 0 {
		found.Status = 403
	}
	return &auth.CheckResponse{
		Status: &status.Status{Code: int32(codes.PermissionDenied), Message: "the Rego policy does not allow it"},
		HttpResponse: &auth.CheckResponse_DeniedResponse{DeniedResponse: &auth.DeniedHttpResponse{
			Status:  &httptype.HttpStatus{Code: httptype.StatusCode(found.Status)},
			Headers: options(found.Headers),
			Body:    found.Body,
		}},
	}
}

func options(headers map[string]string) []*core.HeaderValueOption {
	var all []*core.HeaderValueOption
	for key, value := range headers {
		all = append(all, &core.HeaderValueOption{
			Header:       &core.HeaderValue{Key: key, Value: value},
			AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	return all
}

// inputOf is the request as JSON, with its path, query and body taken apart.
func inputOf(request *auth.CheckRequest) (map[string]any, error) {
	text, err := protojson.Marshal(request)
	if err != nil {
		return nil, err
	}
	var input map[string]any
	if err := json.Unmarshal(text, &input); err != nil {
		return nil, err
	}
	http := request.GetAttributes().GetRequest().GetHttp()
	path, query, _ := strings.Cut(http.GetPath(), "?")
	parts := []any{}
	for _, part := range strings.Split(strings.TrimPrefix(path, "/"), "/") {
		parts = append(parts, part)
	}
	parameters := map[string]any{}
	if values, err := url.ParseQuery(query); err == nil {
		for name, all := range values {
			list := []any{}
			for _, value := range all {
				list = append(list, value)
			}
			parameters[name] = list
		}
	}
	input["parsed_path"] = parts
	input["parsed_query"] = parameters
	input["truncated_body"] = http.GetHeaders()["x-envoy-auth-partial-body"] == "true"
	var body any
	if json.Unmarshal([]byte(http.GetBody()), &body) == nil {
		input["parsed_body"] = body
	}
	input["version"] = map[string]any{"ext_authz": "v3"}
	return input, nil
}
