// An HTTP server that prints and answers with the caller's identity as it sees it.
'use strict';
const http = require('http');

const server = http.createServer((request, response) => {
  const names = Object.keys(request.headers).filter((name) => /^x.forwarded.client.cert$/.test(name));
  const seen = names.map((name) => request.headers[name]).join(',') || '-';
  console.log(`${request.method} ${request.url} identity=${seen}`);
  request.resume();
  request.on('end', () => {
    const merged = request.trailers['x-forwarded-client-cert'];
    if (merged !== undefined) console.log(`trailer identity=${merged}`);
    if (request.url === '/speaks') {
      response.writeHead(200, { 'weft-reason': 'no-endpoints', 'Weft_Deadline': '1', Trailer: 'weft-reason, x-sum' });
      response.write('hi');
      response.addTrailers({ 'weft-reason': 'no-endpoints', 'x-forwarded-client-cert': 'x', 'x-sum': '1' });
      return response.end();
    }
    // Asks for itself with everything it was asked with, as a reverse proxy that points to itself.
    if (request.url === '/round') {
      const again = { host: process.argv[3], port: process.argv[2], path: '/round', headers: request.headers };
      return http.get(again, (answer) => {
        response.writeHead(answer.statusCode, answer.headers);
        answer.pipe(response);
      });
    }
    response.end(`identity=${seen}\n`);
  });
});
server.listen(Number(process.argv[2]), '::');
