package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

type scenario struct {
	name, method, target             string
	body                             int
	chunked, expect, trailer, slowly bool
	times                            int
	fields                           [][2]string
}

func scenarios(file string) (all []scenario) {
	text, err := os.ReadFile(file)
	if err != nil {
		panic(err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		words := strings.Fields(line)
		if len(words) < 3 || words[0] == "#" || strings.HasPrefix(line, "#") {
			continue
		}
		s := scenario{name: words[0], method: words[1], target: words[2], body: -1, times: 1}
		for _, option := range words[3:] {
			name, value, _ := strings.Cut(option, "=")
			n, _ := strconv.Atoi(value)
			switch name {
			case "body":
				s.body = n
			case "chunked":
				s.chunked = true
			case "expect":
				s.expect = true
			case "trailer":
				s.trailer = true
			case "slow":
				s.slowly = true
			case "times":
				s.times = n
			case "big":
				s.fields = append(s.fields, [2]string{"x-big", strings.Repeat("b", n)})
			case "header":
				field, content, _ := strings.Cut(value, ":")
				s.fields = append(s.fields, [2]string{field, strings.ReplaceAll(content, "_", " ")})
			}
		}
		all = append(all, s)
	}
	return all
}

// A reader that net/http cannot tell the length of.
type unknown struct{ io.Reader }

func (s scenario) request(host, port string) *http.Request {
	var body io.Reader
	if s.body >= 0 {
		body = bytes.NewReader(pattern(s.body))
		if s.chunked {
			body = unknown{body}
		}
	}
	request, err := http.NewRequest(s.method, "http://"+net.JoinHostPort(host, port)+s.target, body)
	if err != nil {
		panic(err)
	}
	request.Header.Set("User-Agent", "pairs")
	request.Header.Set("Accept-Encoding", "identity")
	for _, field := range s.fields {
		if textproto.CanonicalMIMEHeaderKey(field[0]) == "Accept-Encoding" {
			request.Header.Del(field[0])
		}
		request.Header.Add(field[0], field[1])
	}
	if s.expect {
		request.Header.Set("Expect", "100-continue")
	}
	if s.trailer {
		request.Trailer = http.Header{"X-Sum": {"1"}}
	}
	return request
}

func (s scenario) once(client *http.Client, host, port string, connections *int) (string, error) {
	var hints strings.Builder
	trace := &httptrace.ClientTrace{
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			if code != 100 {
				fmt.Fprintf(&hints, "hint %d\n%s", code, lines("hint", http.Header(header)))
			}
			return nil
		},
		GotConn: func(info httptrace.GotConnInfo) {
			if !info.Reused {
				*connections++
			}
		},
	}
	ctx, cancel := context.WithTimeout(httptrace.WithClientTrace(context.Background(), trace), 30*time.Second)
	defer cancel()
	response, err := client.Do(s.request(host, port).WithContext(ctx))
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	var body bytes.Buffer
	if s.slowly {
		for err == nil {
			_, err = io.CopyN(&body, response.Body, 65536)
			time.Sleep(4 * time.Millisecond)
		}
		if err == io.EOF {
			err = nil
		}
	} else {
		_, err = io.Copy(&body, response.Body)
	}
	if err != nil {
		return "", err
	}
	header := response.Header.Clone()
	header.Del("Date")
	header.Del("Content-Length")
	if response.ContentLength >= 0 {
		header.Set("Content-Length", strconv.FormatInt(response.ContentLength, 10))
	}
	found := fmt.Sprintf("status %d HTTP/%d\n%s%sbody %d %x\n", response.StatusCode, response.ProtoMajor,
		hints.String(), lines("field", header), body.Len(), sha256.Sum256(body.Bytes()))
	if body.Len() < 10000 && header.Get("Content-Encoding") == "" {
		found += body.String()
	}
	return strings.ReplaceAll(found+lines("trailer", response.Trailer), host, "HOST"), nil
}

func (s scenario) observe(client *http.Client, host, port string) string {
	connections := 0
	last := ""
	for i := 0; i < s.times; i++ {
		found, err := s.once(client, host, port, &connections)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s %s: %v\n", port, s.name, err)
			return "error"
		}
		if i > 0 && found != last {
			return "different answers:\n" + last + found
		}
		last = found
	}
	if s.times > 1 {
		last += fmt.Sprintf("connections %d\n", connections)
	}
	return last
}

// Asks every port (`h1:8101`) of a host for all scenarios; prints `MODE PORT SCENARIO OBSERVATION`.
func askAll(host, file string, ports []string) {
	sort.Strings(ports)
	var printing sync.Mutex
	var running sync.WaitGroup
	for _, modeAndPort := range ports {
		mode, port, _ := strings.Cut(modeAndPort, ":")
		protocols := new(http.Protocols)
		protocols.SetHTTP1(mode == "h1")
		protocols.SetUnencryptedHTTP2(mode == "h2")
		running.Add(1)
		go func() {
			defer running.Done()
			for _, s := range scenarios(file) {
				transport := &http.Transport{Protocols: protocols, DisableCompression: true,
					ExpectContinueTimeout: time.Second}
				client := &http.Client{Transport: transport,
					CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
				found := s.observe(client, host, port)
				transport.CloseIdleConnections()
				printing.Lock()
				fmt.Printf("go-%s\t%s\t%s\t%q\n", mode, port, s.name, found)
				printing.Unlock()
			}
		}()
	}
	running.Wait()
}
