// Node's own HTTP/2 server with WebSocket (RFC 8441): echoes messages of whole frames.
// Usage: node websocket_h2_server.js PORT
'use strict';
const http2 = require('node:http2');

const server = http2.createServer({ settings: { enableConnectProtocol: true } });
server.on('stream', (stream, headers) => {
  stream.on('error', () => {});
  if (headers[':method'] !== 'CONNECT' || headers[':protocol'] !== 'websocket') {
    stream.respond({ ':status': 200 });
    stream.end('plain');
    return;
  }
  stream.respond({ ':status': 200 });
  let kept = Buffer.alloc(0);
  stream.on('end', () => stream.end());
  stream.on('data', (data) => {
    kept = Buffer.concat([kept, data]);
    for (let frame = take(); frame; frame = take()) {
      if (frame.opcode === 9) write(10, frame.payload);
      else if (frame.opcode === 8) { write(8, frame.payload); stream.end(); }
      else if (frame.payload.toString() === 'close please') {
        write(8, Buffer.concat([Buffer.from([4001 >> 8, 4001 & 255]), Buffer.from('as asked')]));
      } else write(frame.opcode, frame.payload);
    }
  });
  function take() {
    if (kept.length < 2) return null;
    let length = kept[1] & 127, at = 2;
    if (length === 126) { if (kept.length < 4) return null; length = kept.readUInt16BE(2); at = 4; }
    else if (length === 127) { if (kept.length < 10) return null; length = Number(kept.readBigUInt64BE(2)); at = 10; }
    if (kept.length < at + 4 + length) return null;
    const mask = kept.subarray(at, at + 4), payload = Buffer.from(kept.subarray(at + 4, at + 4 + length));
    for (let i = 0; i < payload.length; i += 1) payload[i] ^= mask[i % 4];
    const opcode = kept[0] & 15;
    kept = kept.subarray(at + 4 + length);
    return { opcode, payload };
  }
  function write(opcode, payload) {
    const head = payload.length < 126 ? Buffer.from([128 | opcode, payload.length]) : Buffer.alloc(10);
    if (payload.length >= 126) { head[0] = 128 | opcode; head[1] = 127; head.writeBigUInt64BE(BigInt(payload.length), 2); }
    stream.write(Buffer.concat([head, payload]));
  }
});
server.listen(Number(process.argv[2]), () => console.log('serving'));
