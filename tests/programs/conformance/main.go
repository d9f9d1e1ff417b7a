// gRPC by grpc-go: the interoperability tests of its own project, and many calls to a server that ends
// its connections. conformance interop-server|interop|turning-server|calls ARGUMENTS.
package main

import "os"

func main() {
	arguments := os.Args[2:]
	switch os.Args[1] {
	case "interop-server":
		serveInterop(arguments[0])
	case "interop":
		interopCase(arguments[0], arguments[1])
	case "turning-server":
		serveTurning(arguments[0], arguments[1], arguments[2])
	case "calls":
		callMany(arguments[0], arguments[1], arguments[2])
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
