package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"net/http"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"
)

var hop = regexp.MustCompile("^(connection|keep-alive|transfer-encoding|te|trailer|upgrade|http2-settings" +
	"|x-forwarded-client-cert|weft-.*|traceparent|tracestate)$")

func pattern(n int) []byte {
	return bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n]
}

// Lines of all fields, sorted by name.
func lines(kind string, header http.Header) string {
	var names []string
	for name := range header {
		names = append(names, name)
	}
	sort.Slice(names, func(a, b int) bool { return strings.ToLower(names[a]) < strings.ToLower(names[b]) })
	var text strings.Builder
	for _, name := range names {
		values := header[name]
		if name == "Cookie" {
			values = []string{strings.Join(values, "; ")}
		}
		for _, value := range values {
			if lower := strings.ToLower(name); !hop.MatchString(lower) {
				fmt.Fprintf(&text, "%s %s: %s\n", kind, lower, value)
			}
		}
	}
	return text.String()
}

func report(w http.ResponseWriter, r *http.Request) {
	hash := sha256.New()
	length, err := io.Copy(hash, r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Header.Set("Host", r.Host)
	if r.ContentLength >= 0 && r.Method != "GET" && r.Method != "HEAD" {
		r.Header.Set("Content-Length", strconv.FormatInt(r.ContentLength, 10))
	}
	text := fmt.Sprintf("method %s\ntarget %s\n%sbody %d %x\n%s", r.Method, r.RequestURI,
		lines("field", r.Header), length, hash.Sum(nil)[:8], lines("trailer", r.Trailer))
	w.Header().Set("x-method", r.Method)
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.Header().Set("Content-Type", "text/plain")
	_, _ = io.WriteString(w, text)
}

func answer(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.URL.Query().Get("n"))
	path := r.URL.Path
	if strings.HasPrefix(path, "/report") {
		report(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	if path == "/early" {
		w.Header().Set("Connection", "close")
		w.WriteHeader(413)
		_, _ = io.WriteString(w, "too large")
		return
	}
	_, _ = io.Copy(io.Discard, r.Body)
	switch path {
	case "/bytes":
		w.Header().Set("Content-Length", strconv.Itoa(n))
		_, _ = w.Write(pattern(n))
	case "/chunked":
		_ = http.NewResponseController(w).Flush()
		for ; n > 0; n -= 50000 {
			_, _ = w.Write(pattern(min(n, 50000)))
		}
	case "/trailers":
		w.Header().Set("Trailer", "x-sum")
		_, _ = io.WriteString(w, "body")
		w.Header().Set("x-sum", "1")
	case "/status":
		code, _ := strconv.Atoi(r.URL.Query().Get("code"))
		w.Header().Set("ETag", `"a"`)
		w.WriteHeader(code)
	case "/gzip":
		var body bytes.Buffer
		writer := gzip.NewWriter(&body)
		_, _ = writer.Write(pattern(1000))
		_ = writer.Close()
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(body.Bytes())
	case "/hints":
		w.Header().Set("x-hint", "1")
		w.Header().Set("Link", "</a.css>; rel=preload; as=style")
		w.WriteHeader(103)
		_, _ = io.WriteString(w, "after hints")
	case "/cookies":
		w.Header()["Set-Cookie"] = []string{"a=1", "b=2"}
		_, _ = io.WriteString(w, "c")
	case "/large-head":
		w.Header().Set("x-large", strings.Repeat("x", n))
		_, _ = io.WriteString(w, "large")
	case "/truncated":
		if r.URL.RawQuery == "" {
			w.Header().Set("Content-Length", "1000")
		}
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		time.Sleep(50 * time.Millisecond)
		panic(http.ErrAbortHandler)
	case "/slow":
		time.Sleep(300 * time.Millisecond)
		_, _ = io.WriteString(w, "slow")
	default:
		w.WriteHeader(404)
	}
}

// HTTP/1.1 and, with prior knowledge, HTTP/2; connections may be idle for so many milliseconds (0: for ever).
func serve(idle string, ports []string) {
	milliseconds, _ := strconv.Atoi(idle)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	for _, port := range ports {
		server := &http.Server{Addr: ":" + port, Handler: http.HandlerFunc(answer), Protocols: protocols,
			IdleTimeout: time.Duration(milliseconds) * time.Millisecond, ErrorLog: log.New(io.Discard, "", 0)}
		go func() { log.Fatal(server.ListenAndServe()) }()
	}
	select {}
}
