package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const large = 64 << 20

// Messages are bytes; nothing is generated.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(message any) ([]byte, error) { return *message.(*[]byte), nil }

func (raw) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = data
	return nil
}

var cancelled atomic.Int64

// The methods of grpc_server.py.
func handle(_ any, stream grpc.ServerStream) error {
	name, _ := grpc.MethodFromServerStream(stream)
	method := name[strings.LastIndex(name, "/")+1:]
	if !strings.Contains(" Unary Big ClientStream ServerStream Bidi Sleep Fail FailMidway Cancelled Details ", " "+method+" ") {
		return status.Error(codes.Unimplemented, "no such method")
	}
	var request []byte
	if method == "ClientStream" {
		return clientStream(stream)
	}
	for {
		if err := stream.RecvMsg(&request); err == io.EOF && method == "Bidi" {
			return nil
		} else if err != nil {
			return err
		}
		if method != "Bidi" {
			break
		}
		reply := append([]byte("re:"), request...)
		if err := stream.SendMsg(&reply); err != nil {
			return err
		}
	}
	return one(method, request, stream)
}

func clientStream(stream grpc.ServerStream) error {
	count, size := 0, 0
	for {
		var request []byte
		err := stream.RecvMsg(&request)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		count++
		size += len(request)
	}
	reply, _ := json.Marshal(map[string]int{"count": count, "size": size})
	return stream.SendMsg(&reply)
}

func one(method string, request []byte, stream grpc.ServerStream) error {
	reply := request
	switch method {
	case "Unary":
		reply = unary(request, stream)
	case "Big":
		if size, found := bytes.CutPrefix(request, []byte("size:")); found {
			n, _ := strconv.Atoi(string(size))
			reply = bytes.Repeat([]byte("z"), n)
		}
	case "ServerStream":
		var count, size int
		var pause float64
		_, _ = fmt.Sscan(string(request), &count, &size, &pause)
		for number := range count {
			message := append([]byte{0, 0, 0, 0, 0, 0, byte(number >> 8), byte(number)}, bytes.Repeat([]byte("s"), size)...)
			if err := stream.SendMsg(&message); err != nil {
				return err
			}
			time.Sleep(time.Duration(pause * float64(time.Second)))
		}
		return nil
	case "Sleep":
		seconds, _ := strconv.ParseFloat(string(request), 64)
		select {
		case <-stream.Context().Done():
			cancelled.Add(1)
			return stream.Context().Err()
		case <-time.After(time.Duration(seconds * float64(time.Second))):
		}
		reply = []byte("slept")
	case "Fail":
		stream.SetTrailer(metadata.Pairs("x-why", "asked to"))
		return status.Error(codes.FailedPrecondition, "no é way: 100%\n")
	case "FailMidway":
		message := []byte("one")
		_ = stream.SendMsg(&message)
		return status.Error(codes.DataLoss, "midway")
	case "Cancelled":
		reply = []byte(strconv.FormatInt(cancelled.Load(), 10))
	case "Details":
		var wanted spb.Status
		if err := proto.Unmarshal(request, &wanted); err != nil {
			return err
		}
		return status.FromProto(&wanted).Err()
	}
	return stream.SendMsg(&reply)
}

func unary(request []byte, stream grpc.ServerStream) []byte {
	seen := map[string]string{}
	fields, _ := metadata.FromIncomingContext(stream.Context())
	for name, values := range fields {
		seen[name] = strings.Join(values, ", ")
		if strings.HasSuffix(name, "-bin") {
			seen[name] = hex.EncodeToString([]byte(values[0]))
		}
	}
	_ = stream.SetHeader(metadata.Pairs("x-initial", "first", "x-initial-bin", "\x00\xff"))
	stream.SetTrailer(metadata.Pairs("x-trailing", "last", "x-trailing-bin", "\x01\xfe"))
	left := 0.0
	if deadline, has := stream.Context().Deadline(); has {
		left = time.Until(deadline).Seconds()
	}
	from, _ := peer.FromContext(stream.Context())
	reply, _ := json.Marshal(map[string]any{"echo": string(request), "metadata": seen, "deadline": left, "peer": from.Addr.String()})
	return reply
}

func serveGRPC(port string) {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		panic(err)
	}
	server := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(handle),
		grpc.MaxRecvMsgSize(large), grpc.MaxSendMsgSize(large),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 100 * time.Millisecond, PermitWithoutStream: true}))
	panic(server.Serve(listener))
}

type caller struct{ *grpc.ClientConn }

func timed(seconds float64) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Duration(seconds*float64(time.Second)))
}

func (c caller) unary(ctx context.Context, method, message string, options ...grpc.CallOption) (string, error) {
	request, reply := []byte(message), []byte(nil)
	err := c.Invoke(ctx, "/weft.test.Echo/"+method, &request, &reply, options...)
	return string(reply), err
}

func (c caller) stream(ctx context.Context, method string) grpc.ClientStream {
	stream, err := c.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/weft.test.Echo/"+method)
	must(err)
	return stream
}

// A stream of the server's, begun.
func (c caller) listen(ctx context.Context, method, message string) grpc.ClientStream {
	stream, request := c.stream(ctx, method), []byte(message)
	must(stream.SendMsg(&request))
	must(stream.CloseSend())
	return stream
}

func receive(stream grpc.ClientStream) (string, error) {
	var reply []byte
	err := stream.RecvMsg(&reply)
	return string(reply), err
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func equal(found, expected any) {
	if found != expected {
		panic(fmt.Sprintf("found %.300v, expected %.300v", found, expected))
	}
}

func failed(err error) (codes.Code, string) {
	if err == nil || err == io.EOF {
		panic("the call succeeded")
	}
	return status.Convert(err).Code(), status.Convert(err).Message()
}

// The checks of grpc_client.py, by grpc-go.
func checks() map[string]func(caller) {
	return map[string]func(caller){
		"unary": func(c caller) {
			for i := range 100 {
				ctx, cancel := timed(20)
				reply, err := c.unary(ctx, "Big", strconv.Itoa(i))
				cancel()
				must(err)
				equal(reply, strconv.Itoa(i))
			}
		},
		"concurrent unary": func(c caller) {
			var all sync.WaitGroup
			errors := make(chan error, 200)
			for range 200 {
				all.Add(1)
				go func() {
					defer all.Done()
					ctx, cancel := timed(20)
					defer cancel()
					_, err := c.unary(ctx, "Big", "x")
					errors <- err
				}()
			}
			all.Wait()
			for range 200 {
				must(<-errors)
			}
		},
		"metadata": func(c caller) {
			ctx, cancel := timed(20)
			defer cancel()
			ctx = metadata.AppendToOutgoingContext(ctx, "x-client", "a", "x-client-bin", "\x00\x80\xff")
			var header, trailer metadata.MD
			reply, err := c.unary(ctx, "Unary", "m", grpc.Header(&header), grpc.Trailer(&trailer))
			must(err)
			var seen struct {
				Metadata map[string]string
				Deadline float64
			}
			must(json.Unmarshal([]byte(reply), &seen))
			equal(seen.Metadata["x-client"]+seen.Metadata["x-client-bin"], "a0080ff")
			equal(seen.Deadline > 0 && seen.Deadline <= 20.2, true)
			equal(header["x-initial"][0]+header["x-initial-bin"][0], "first\x00\xff")
			equal(trailer["x-trailing"][0]+trailer["x-trailing-bin"][0], "last\x01\xfe")
		},
		"client stream": func(c caller) {
			ctx, cancel := timed(20)
			defer cancel()
			stream, message := c.stream(ctx, "ClientStream"), bytes.Repeat([]byte("c"), 1000)
			for range 500 {
				must(stream.SendMsg(&message))
			}
			must(stream.CloseSend())
			reply, err := receive(stream)
			must(err)
			var sums struct{ Count, Size int }
			must(json.Unmarshal([]byte(reply), &sums))
			equal(sums.Count*1_000_000+sums.Size, 500_500_000)
		},
		"server stream": func(c caller) {
			ctx, cancel := timed(20)
			defer cancel()
			stream := c.listen(ctx, "ServerStream", "500 1000 0")
			for i := range 500 {
				reply, err := receive(stream)
				must(err)
				equal(int(reply[6])<<8+int(reply[7]), i)
				equal(len(reply), 1008)
			}
			_, err := receive(stream)
			equal(err, io.EOF)
		},
		"bidi in lock step": func(c caller) {
			ctx, cancel := timed(20)
			defer cancel()
			stream := c.stream(ctx, "Bidi")
			for i := range 100 {
				message := []byte(strconv.Itoa(i))
				must(stream.SendMsg(&message))
				reply, err := receive(stream)
				must(err)
				equal(reply, "re:"+strconv.Itoa(i))
			}
			must(stream.CloseSend())
			_, err := receive(stream)
			equal(err, io.EOF)
		},
		"deadline": func(c caller) {
			ctx, cancel := timed(0.5)
			defer cancel()
			began := time.Now()
			_, err := c.unary(ctx, "Sleep", "5")
			code, _ := failed(err)
			equal(code, codes.DeadlineExceeded)
			equal(time.Since(began) < 2500*time.Millisecond, true)
		},
		"cancellation": func(c caller) {
			count := func() int {
				ctx, cancel := timed(20)
				defer cancel()
				reply, err := c.unary(ctx, "Cancelled", "")
				must(err)
				n, _ := strconv.Atoi(reply)
				return n
			}
			before := count()
			ctx, cancel := timed(15)
			for range 5 {
				stream := c.stream(ctx, "Sleep")
				message := []byte("10")
				must(stream.SendMsg(&message))
				must(stream.CloseSend())
			}
			time.Sleep(500 * time.Millisecond)
			cancel()
			for end := time.Now().Add(5 * time.Second); count() < before+5; time.Sleep(50 * time.Millisecond) {
				equal(time.Now().Before(end), true)
			}
		},
		"errors": func(c caller) {
			ctx, cancel := timed(20)
			defer cancel()
			var trailer metadata.MD
			_, err := c.unary(ctx, "Fail", "", grpc.Trailer(&trailer))
			code, message := failed(err)
			equal(code, codes.FailedPrecondition)
			equal(message, "no é way: 100%\n")
			equal(trailer["x-why"][0], "asked to")
			_, err = c.unary(ctx, "Missing", "")
			code, _ = failed(err)
			equal(code, codes.Unimplemented)
		},
		"error after messages": func(c caller) {
			ctx, cancel := timed(20)
			defer cancel()
			stream := c.listen(ctx, "FailMidway", "")
			reply, err := receive(stream)
			must(err)
			equal(reply, "one")
			_, err = receive(stream)
			code, _ := failed(err)
			equal(code, codes.DataLoss)
		},
		"error details": func(c caller) {
			ctx, cancel := timed(20)
			defer cancel()
			detail, err := anypb.New(wrapperspb.String("a detail of some length"))
			must(err)
			wanted, err := proto.Marshal(&spb.Status{Code: 3, Message: "bad", Details: []*anypb.Any{detail}})
			must(err)
			_, err = c.unary(ctx, "Details", string(wanted))
			code, message := failed(err)
			equal(code, codes.InvalidArgument)
			equal(message, "bad")
			equal(status.Convert(err).Details()[0].(*wrapperspb.StringValue).Value, "a detail of some length")
		},
		"large messages": func(c caller) {
			ctx, cancel := timed(60)
			defer cancel()
			body := strings.Repeat("0123456789abcdef", 8<<16)
			reply, err := c.unary(ctx, "Big", body)
			must(err)
			equal(reply == body, true)
			reply, err = c.unary(ctx, "Big", "size:16777216")
			must(err)
			equal(len(reply), 16<<20)
		},
		"compressed": func(c caller) {
			ctx, cancel := timed(20)
			defer cancel()
			body := strings.Repeat("0123456789abcdef", 1<<14)
			reply, err := c.unary(ctx, "Big", body, grpc.UseCompressor("gzip"))
			must(err)
			equal(reply == body, true)
		},
		"many streams": func(c caller) {
			ctx, cancel := timed(20)
			defer cancel()
			var streams []grpc.ClientStream
			for range 40 {
				streams = append(streams, c.listen(ctx, "ServerStream", "20 100 0.02"))
			}
			for _, stream := range streams {
				for range 20 {
					_, err := receive(stream)
					must(err)
				}
				_, err := receive(stream)
				equal(err, io.EOF)
			}
		},
	}
}

// Prints one JSON object: name -> "ok" or what went wrong.
func callAll(target string) {
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(large), grpc.MaxCallSendMsgSize(large)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, PermitWithoutStream: true}))
	must(err)
	results, code := map[string]string{}, 0
	for name, check := range checks() {
		func() {
			defer func() {
				if problem := recover(); problem != nil {
					results[name], code = fmt.Sprint(problem), 1
				}
			}()
			check(caller{connection})
			results[name] = "ok"
		}()
	}
	_ = json.NewEncoder(os.Stdout).Encode(results)
	os.Exit(code)
}
