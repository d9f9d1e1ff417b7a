// The pairs' programs in Go: pairs server|client|grpc-server|grpc-client ARGUMENTS.
package main

import "os"

func main() {
	switch os.Args[1] {
	case "server":
		serve(os.Args[2], os.Args[3:])
	case "client":
		askAll(os.Args[2], os.Args[3], os.Args[4:])
	case "grpc-server":
		serveGRPC(os.Args[2])
	case "grpc-client":
		callAll(os.Args[2])
	}
}
