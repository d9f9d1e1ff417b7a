// An application in HTTP/2 that answers with the names of the fields that it was sent, and sends a form
// of its own. Usage: heads_app.js PORT
const http2 = require("http2");
const server = http2.createServer();
server.on("stream", (stream, headers) => {
  const names = Object.keys(headers).filter((name) => !name.startsWith(":"));
  const body = JSON.stringify(names);
  stream.respond({ ":status": 200, "content-length": body.length, "weft-http1-form": 't"Mine"', server: "a" });
  stream.end(body);
});
server.listen(Number(process.argv[2]), "::");
