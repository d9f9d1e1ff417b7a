// Answers as net/http does: `x-handler: login` where the cleaned path, or the mux, leads to /login.
package main

import (
	"net/http"
	"os"
	"path"
)

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("/login", func(http.ResponseWriter, *http.Request) {})
	handler := func(w http.ResponseWriter, r *http.Request) {
		name := "other"
		_, pattern := mux.Handler(r)
		if pattern == "/login" || path.Clean(r.URL.Path) == "/login" {
			name = "login"
		}
		w.Header().Set("x-handler", name)
		w.Header().Set("x-raw", r.RequestURI)
	}
	panic(http.ListenAndServe(":"+os.Args[1], http.HandlerFunc(handler)))
}
