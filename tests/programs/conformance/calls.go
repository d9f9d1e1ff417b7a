package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// A call that takes longer hangs.
const patience = 60 * time.Second

// Messages are bytes; nothing is generated.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(message any) ([]byte, error) { return *message.(*[]byte), nil }

func (raw) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = data
	return nil
}

// What one server takes of a listener that others have after it: closing it closes nothing.
type share struct {
	net.Listener
	connections <-chan net.Conn
	closed      chan struct{}
	once        sync.Once
}

func (s *share) Accept() (net.Conn, error) {
	select {
	case <-s.closed:
		return nil, io.EOF
	default:
	}
	select {
	case <-s.closed:
		return nil, io.EOF
	case connection := <-s.connections:
		return connection, nil
	}
}

func (s *share) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// Answers every call with its request, and ends its connections: every so many calls in order (`graceful`) or
// at once (`abrupt`), or so many milliseconds after they were made (`aged`).
func serveTurning(port, how, number string) {
	every, err := strconv.Atoi(number)
	must(err)
	listener, err := net.Listen("tcp", ":"+port)
	must(err)
	connections := make(chan net.Conn)
	go func() {
		for {
			connection, err := listener.Accept()
			must(err)
			connections <- connection
		}
	}()
	var count atomic.Int64
	turn := make(chan struct{}, 1000)
	handle := func(_ any, stream grpc.ServerStream) error {
		var message []byte
		if err := stream.RecvMsg(&message); err != nil {
			return err
		}
		if how != "aged" && count.Add(1)%int64(every) == 0 {
			turn <- struct{}{}
		}
		return stream.SendMsg(&message)
	}
	options := []grpc.ServerOption{grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(handle)}
	if how == "aged" {
		age := time.Duration(every) * time.Millisecond
		options = append(options, grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: age, MaxConnectionAgeGrace: patience}))
	}
	for {
		server := grpc.NewServer(options...)
		taking := &share{Listener: listener, connections: connections, closed: make(chan struct{})}
		go server.Serve(taking)
		<-turn
		taking.Close()
		if how == "abrupt" {
			server.Stop()
		} else {
			go server.GracefulStop()
		}
	}
}

// What became of many calls.
type outcomes struct {
	sync.Mutex
	Statuses map[string]int
	// The first message of each status, and how often an answer was another call's.
	Messages map[string]string
	Wrong    int
	Slowest  float64
	Seconds  float64
}

func (o *outcomes) add(err error, right bool, took time.Duration) {
	o.Lock()
	defer o.Unlock()
	found := status.Convert(err)
	name := found.Code().String()
	o.Statuses[name]++
	if _, has := o.Messages[name]; !has && found.Code() != codes.OK {
		o.Messages[name] = found.Message()
	}
	if err == nil && !right {
		o.Wrong++
	}
	o.Slowest = max(o.Slowest, took.Seconds())
}

// Makes so many calls, so many at a time; prints one JSON object.
func callMany(target, total, atATime string) {
	all, err := strconv.Atoi(total)
	must(err)
	workers, err := strconv.Atoi(atATime)
	must(err)
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	must(err)
	seen := outcomes{Statuses: map[string]int{}, Messages: map[string]string{}}
	var next atomic.Int64
	var running sync.WaitGroup
	began := time.Now()
	for range workers {
		running.Add(1)
		go func() {
			defer running.Done()
			for number := next.Add(1); number <= int64(all); number = next.Add(1) {
				request, reply := []byte(strconv.FormatInt(number, 10)), []byte(nil)
				start := time.Now()
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				err := connection.Invoke(ctx, "/weft.test.Many/Call", &request, &reply)
				cancel()
				seen.add(err, string(reply) == string(request), time.Since(start))
			}
		}()
	}
	running.Wait()
	seen.Seconds = time.Since(began).Seconds()
	must(json.NewEncoder(os.Stdout).Encode(&seen))
}
