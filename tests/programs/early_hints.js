// Answers with 103 and then 200, in HTTP/1.1 on one port and in HTTP/2 on the next (Node's own servers).
// Usage: node early_hints.js PORT

const http = require("http");
const http2 = require("http2");

const port = Number(process.argv[2]);
const answer = (request, response) => {
  response.writeEarlyHints({ link: "</a.css>; rel=preload; as=style" });
  setTimeout(() => response.end("hinted\n"), 50);
};
http.createServer(answer).listen(port, "0.0.0.0");
http2.createServer(answer).listen(port + 1, "0.0.0.0");
