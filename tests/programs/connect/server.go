// A server of Go's net/http that answers CONNECT by the host that is asked for: `tunnel` opens one that
// echoes, `switch` is answered 101, `empty` 204, `reset` 205, `content` 200 with a body, anything else 403. It prints each request.
// Usage: server PORT
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

func main() {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println(r.Method, r.Host, "identity="+r.Header.Get("X-Forwarded-Client-Cert"))
		if r.Method != http.MethodConnect {
			io.WriteString(w, "plain\n")
			return
		}
		switch strings.Split(r.Host, ":")[0] {
		case "tunnel":
			connection, buffered, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			defer connection.Close()
			io.WriteString(connection, "HTTP/1.1 200 Connected\r\n\r\n")
			io.Copy(connection, buffered)
		case "switch":
			connection, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			defer connection.Close()
			io.WriteString(connection, "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			io.Copy(io.Discard, connection)
		case "empty":
			w.WriteHeader(http.StatusNoContent)
		case "reset":
			w.WriteHeader(http.StatusResetContent)
		case "content":
			io.WriteString(w, "content\n")
		default:
			http.Error(w, "not here", http.StatusForbidden)
		}
	})
	if err := http.ListenAndServe(":"+os.Args[1], handler); err != nil {
		panic(err)
	}
}
