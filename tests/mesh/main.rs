//! Whole-mesh tests: the real binary, real third-party programs, real network namespaces.
//! One module per behaviour; `tests/README.md` says how to run them.

// HTTP/1 in every legal shape, curl and nginx.
mod http;
// The ends of HTTP/1 messages and connections.
mod http1;
// A grpcio client and server: every kind of call and every way that a call ends.
mod grpc;
// Real clients and servers in pairs: what they do without a mesh they do with it.
mod programs;
// h2spec, the interoperability tests of gRPC, and many calls.
mod conformance;
// Upgraded connections.
mod websocket;
// The same over HTTP/2.
mod websocket_h2;
// psql, mariadb and redis-cli with their servers.
mod databases;
// A gibibyte up and down.
mod blame;
mod bulk;
// The same over IPv6.
mod ipv6;
// Which packets go where.
mod intercept;
// Names.
mod dns;
// Administration from elsewhere.
mod operator;
// Revisions: conflicts, the way back, backups.
mod versions;
// What is on the wire between sidecars.
mod capture;
// What is particular to pods.
mod pods;
mod policy;
// Limits on connections, and limits that come while connections stand.
mod limits;
// An endpoint that never answers.
mod hung;
// Slow requests that are made a second time; connections and streams that carry nothing.
mod hedging;
mod silence;
// How many requests are let through: by one sidecar, and by all together.
mod rate_limits;
// Spellings of a path, and servers that read them in their own way.
mod paths;
// What an application that is asked for too much refuses.
mod shedding;
// Who gets past the mesh: forged callers, and what leads back to the sidecar itself.
mod forged;
mod loops;
// Requests that servers read in different ways, on every way.
mod smuggling;
// Whose fault it is when a request ends early, and that nothing gets around its checks.
mod way;
// The same rules through two sidecars and from outside.
mod ways_in;
// CONNECT.
mod connect;
// A forward proxy that is a service.
mod forward_proxy;
// What is let out of the mesh.
mod outside;
// What is outside and declared.
mod external;
// Where requests go: the mesh cases of the Gateway API (GAMMA), and more.
mod routes;
// What the examples say.
mod examples;
// What breakers and budgets change, measured; thousands of changes.
mod experiments;
// Active health checks.
mod health;
// explain, plan, breakers, what is in force.
mod seeing;
// What the guide promises of metrics, reasons and spans.
mod promised;
mod reasons;
mod spans;
mod trouble;
// The one connection that a sidecar has to its control plane, and somebody else at its address.
mod connection;
mod impostor;
// Sidecars in files.
mod inject;
// One client with thousands of connections.
mod crowds;
// How long connections live: revocation, certificates that end.
mod lifetimes;
// What a control plane says of itself.
mod supervised;
// Workloads that leave.
mod leaving;
// Names that lead nowhere.
mod strange_names;
// Nothing fails while everything around is disturbed.
mod continuity;
// What is acknowledged is on the disk; and what a backup is good for when the disk is lost.
mod durability;
mod restored;
// Connections to the application; requests that are reset as soon as they are made.
mod appconns;
mod resets;
// Tunnels: how many, for how long, and what they cost.
mod tunnels;
// Clients in HTTP/2 that stall.
mod stalls;
// What breaks does not end in order, and says why.
mod endings;
// Heads in HTTP/1.1 as they were sent.
mod heads;
// Interim responses before the final one.
mod early;
// Streams in HTTP/2 that are malformed or too large.
mod h2_streams;
// Bad documents, tokens, bytes and programs.
mod badinput;
// Bad policy: refused in four parts, and without harm.
mod badpolicy;
// The flags of `weft run`.
mod run;
// What of Weft's a program reaches.
mod isolation;
// Time to the first line, memory when idle.
mod start;
// README command 1.
mod demo;
// The demo in containers.
mod compose;
// A real Kubernetes node: what is installed, injected, discovered and routed there.
mod kubernetes;

mod support;
