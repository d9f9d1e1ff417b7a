// An HTTP server that prints and answers with the caller's identity as it sees it.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
)

func main() {
	answer := func(w http.ResponseWriter, r *http.Request) {
		seen := r.Header.Get("X-Forwarded-Client-Cert")
		if seen == "" {
			seen = "-"
		}
		fmt.Printf("%q %q identity=%s\n", r.Method, r.RequestURI, seen)
		_, _ = io.Copy(io.Discard, r.Body)
		if merged := r.Trailer.Get("X-Forwarded-Client-Cert"); merged != "" {
			fmt.Printf("trailer identity=%s\n", merged)
		}
		fmt.Fprintf(w, "identity=%s\n", seen)
	}
	log.Fatal(http.ListenAndServe(":"+os.Args[1], http.HandlerFunc(answer)))
}
