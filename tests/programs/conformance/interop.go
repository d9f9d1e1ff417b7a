package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	"google.golang.org/grpc/orca"

	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

// The server of its tests, which says who it is, too (pick_first_unary).
type identified struct {
	testgrpc.TestServiceServer
}

func (s identified) UnaryCall(ctx context.Context, request *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
	reply, err := s.TestServiceServer.UnaryCall(ctx, request)
	if err == nil && request.FillServerId {
		reply.ServerId = strconv.Itoa(os.Getpid())
	}
	return reply, err
}

func serveInterop(port string) {
	listener, err := net.Listen("tcp", ":"+port)
	must(err)
	server := grpc.NewServer(orca.CallMetricsServerOption(nil))
	recorder := orca.NewServerMetricsRecorder()
	options := interop.NewTestServerOptions{MetricsRecorder: recorder}
	testgrpc.RegisterTestServiceServer(server, identified{interop.NewTestServer(options)})
	panic(server.Serve(listener))
}

// One case of google.golang.org/grpc/interop/client, which itself would bring along xDS: all that need neither a
// cloud nor credentials, but orca_oob, whose server nobody else can set up. grpc-go has none of the cases of
// compression. A case that fails ends the process.
func interopCase(target, name string) {
	options := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	if name == "orca_per_rpc" {
		balancing := `{"loadBalancingConfig": [{"test_backend_metrics_load_balancer": {}}]}`
		options = append(options, grpc.WithDisableServiceConfig(), grpc.WithDefaultServiceConfig(balancing))
	}
	connection, err := grpc.NewClient(target, options...)
	must(err)
	defer connection.Close()
	client, ctx := testgrpc.NewTestServiceClient(connection), context.Background()
	soak := interop.SoakTestConfig{
		RequestSize:                      271828,
		ResponseSize:                     314159,
		PerIterationMaxAcceptableLatency: 20 * time.Second,
		OverallTimeout:                   100 * time.Second,
		ServerAddr:                       target,
		NumWorkers:                       2,
		Iterations:                       20,
	}
	switch name {
	case "unimplemented_method":
		interop.DoUnimplementedMethod(ctx, connection)
	case "unimplemented_service":
		interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(connection))
	case "rpc_soak":
		soak.ChannelForTest = func() (*grpc.ClientConn, func()) { return connection, func() {} }
		interop.DoSoakTest(ctx, soak)
	case "channel_soak":
		soak.ChannelForTest = func() (*grpc.ClientConn, func()) {
			another, err := grpc.NewClient(target, options...)
			must(err)
			return another, func() { another.Close() }
		}
		interop.DoSoakTest(ctx, soak)
	default:
		run, known := plainCases[name]
		if !known {
			fmt.Fprintln(os.Stderr, "no such case:", name)
			os.Exit(1)
		}
		run(ctx, client)
	}
}

var plainCases = map[string]func(context.Context, testgrpc.TestServiceClient, ...grpc.CallOption){
	"empty_unary":                 interop.DoEmptyUnaryCall,
	"large_unary":                 interop.DoLargeUnaryCall,
	"client_streaming":            interop.DoClientStreaming,
	"server_streaming":            interop.DoServerStreaming,
	"ping_pong":                   interop.DoPingPong,
	"empty_stream":                interop.DoEmptyStream,
	"timeout_on_sleeping_server":  interop.DoTimeoutOnSleepingServer,
	"cancel_after_begin":          interop.DoCancelAfterBegin,
	"cancel_after_first_response": interop.DoCancelAfterFirstResponse,
	"status_code_and_message":     interop.DoStatusCodeAndMessage,
	"special_status_message":      interop.DoSpecialStatusMessage,
	"custom_metadata":             interop.DoCustomMetadata,
	"pick_first_unary": func(ctx context.Context, client testgrpc.TestServiceClient, _ ...grpc.CallOption) {
		interop.DoPickFirstUnary(ctx, client)
	},
	"orca_per_rpc": func(ctx context.Context, client testgrpc.TestServiceClient, _ ...grpc.CallOption) {
		interop.DoORCAPerRPCTest(ctx, client)
	},
}
