//! Whole-mesh tests: the real binary, real third-party programs, real network namespaces.
//! One module per behaviour; `README.md` beside this directory says how to run them.

// HTTP/1 in every legal shape, curl and nginx.
mod http;
// A grpcio client and server: every kind of call and every way that a call ends.
mod grpc;
// Upgraded connections.
mod websocket;
// psql, mariadb and redis-cli with their servers.
mod databases;

mod support;
