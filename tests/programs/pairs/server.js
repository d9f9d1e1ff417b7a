// The server of the pairs (scenarios.txt) on Node. server.js http|http2 IDLE-MS PORT...
const crypto = require('node:crypto');
const http = require('node:http');
const http2 = require('node:http2');
const zlib = require('node:zlib');

const [kind, idle, ...ports] = process.argv.slice(2);
const HOP = /^(:.*|connection|keep-alive|transfer-encoding|te|trailer|upgrade|http2-settings|x-forwarded-client-cert|weft-.*|traceparent|tracestate)$/;
const pattern = (n) => Buffer.alloc(n, '0123456789abcdef');

function pairs(raw) {
  const found = [];
  const cookies = [];
  for (let i = 0; i < raw.length; i += 2) {
    const name = raw[i].toLowerCase();
    if (name === 'cookie') cookies.push(raw[i + 1]);
    else if (!HOP.test(name)) found.push([name, raw[i + 1]]);
  }
  if (cookies.length) found.push(['cookie', cookies.join('; ')]);
  return found.sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0));
}

function report(request, response) {
  const hash = crypto.createHash('sha256');
  let length = 0;
  request.on('data', (data) => {
    hash.update(data);
    length += data.length;
  });
  request.on('end', () => {
    const fields = request.rawHeaders.slice();
    const authority = request.headers[':authority'];
    if (authority) fields.push('host', authority);
    const lines = [`method ${request.method}`, `target ${request.url}`];
    for (const [name, value] of pairs(fields)) lines.push(`field ${name}: ${value}`);
    lines.push(`body ${length} ${hash.digest('hex').slice(0, 16)}`);
    for (const [name, value] of pairs(request.rawTrailers)) lines.push(`trailer ${name}: ${value}`);
    const text = Buffer.from(lines.join('\n') + '\n', 'latin1');
    response.setHeader('x-method', request.method);
    response.setHeader('content-length', text.length);
    response.end(request.method === 'HEAD' ? undefined : text);
  });
}

async function answer(request, response) {
  const [path, query = ''] = request.url.split('?');
  const n = Number(new URLSearchParams(query).get('n') ?? 0);
  if (path.startsWith('/report')) return report(request, response);
  if (path === '/early') {
    response.writeHead(413, kind === 'http' ? { connection: 'close' } : {});
    return response.end('too large');
  }
  // To a client in HTTP/2 an answer before the end of its upload would end its stream.
  request.resume();
  if (!request.readableEnded) await new Promise((resolve) => request.once('end', resolve));
  if (path === '/bytes') {
    response.setHeader('content-length', n);
    response.end(request.method === 'HEAD' ? undefined : pattern(n));
  } else if (path === '/chunked') {
    response.writeHead(200, {});
    for (let sent = 0; request.method !== 'HEAD' && sent < n; sent += 50000) response.write(pattern(Math.min(50000, n - sent)));
    response.end();
  } else if (path === '/trailers') {
    response.writeHead(200, request.httpVersion === '1.0' ? {} : { trailer: 'x-sum' });
    response.write('body');
    response.addTrailers({ 'x-sum': '1' });
    response.end();
  } else if (path === '/status') {
    response.writeHead(Number(new URLSearchParams(query).get('code')), { etag: '"a"' });
    response.end();
  } else if (path === '/gzip') {
    const body = zlib.gzipSync(pattern(1000));
    response.writeHead(200, { 'content-encoding': 'gzip', 'content-length': body.length });
    response.end(body);
  } else if (path === '/hints') {
    response.writeEarlyHints({ link: '</a.css>; rel=preload; as=style', 'x-hint': '1' });
    response.end('after hints');
  } else if (path === '/cookies') {
    response.writeHead(200, { 'set-cookie': ['a=1', 'b=2'] });
    response.end('c');
  } else if (path === '/large-head') {
    response.writeHead(200, { 'x-large': 'x'.repeat(n) });
    response.end('large');
  } else if (path === '/truncated') {
    response.writeHead(200, query ? {} : { 'content-length': 1000 });
    response.write('half');
    setTimeout(() => (kind === 'http' ? response.destroy() : response.stream.close(2)), 50);
  } else if (path === '/slow') {
    setTimeout(() => response.end('slow'), 300);
  } else {
    response.writeHead(404);
    response.end('no such thing');
  }
}

for (const port of ports) {
  const server = kind === 'http' ? http.createServer(answer) : http2.createServer(answer);
  if (kind === 'http') {
    server.keepAliveTimeout = Number(idle) || 5000;
    server.on('checkContinue', (request, response) => {
      if (!request.url.startsWith('/early')) response.writeContinue();
      answer(request, response);
    });
  }
  server.on('clientError', (error, socket) => socket.destroy());
  server.listen(Number(port), '::');
}
