// What Go sees of its servers: refusals, time-outs, half-closes, deadlines.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

func kind(err error) string {
	var timeout net.Error
	switch {
	case err == nil:
		return "none"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return err.Error()
}

func main() {
	server, silent, port, closed := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	for _, at := range []string{net.JoinHostPort(server, closed), net.JoinHostPort(silent, port)} {
		_, err := net.DialTimeout("tcp", at, 700*time.Millisecond)
		fmt.Println("dial:", kind(err))
	}
	conn, err := net.Dial("tcp", net.JoinHostPort(server, port))
	fmt.Println("dial:", kind(err))
	fmt.Println("peer:", conn.RemoteAddr())
	conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	_, err = conn.Read(make([]byte, 1))
	fmt.Println("read:", kind(err))
	conn.SetReadDeadline(time.Time{})
	fmt.Fprint(conn, "GET /go HTTP/1.1\r\nHost: go\r\nConnection: close\r\n\r\n")
	conn.(*net.TCPConn).CloseWrite()
	answer, err := io.ReadAll(conn)
	fmt.Println("answer:", len(answer) > 50, kind(err))
}
