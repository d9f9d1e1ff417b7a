// The client of the pairs (scenarios.txt) on Node. client.js HOST SCENARIOS MODE:PORT...
const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const http2 = require('node:http2');

const [host, file, ...ports] = process.argv.slice(2);
const HOP = /^(:.*|date|connection|keep-alive|transfer-encoding|trailer)$/;
const pattern = (n) => Buffer.alloc(n, '0123456789abcdef');
const LIMIT = 30000;

function scenarios() {
  const lines = fs.readFileSync(file, 'utf8').split('\n');
  return lines.filter((line) => line && !line.startsWith('#')).map((line) => {
    const [name, method, target, ...options] = line.split(/\s+/);
    const scenario = { name, method, target, body: -1, times: 1, fields: [] };
    for (const option of options) {
      const [key, ...rest] = option.split('=');
      const value = rest.join('=');
      if (key === 'body' || key === 'times') scenario[key] = Number(value);
      else if (key === 'big') scenario.fields.push(['x-big', 'b'.repeat(Number(value))]);
      else if (key === 'header') {
        const [, field, content] = /^([^:]+):(.*)$/.exec(value);
        scenario.fields.push([field, content.replaceAll('_', ' ')]);
      } else scenario[key] = true;
    }
    return scenario;
  });
}

function lines(kind, raw) {
  const found = [];
  for (let i = 0; i < raw.length; i += 2) {
    const name = raw[i].toLowerCase();
    if (!HOP.test(name)) found.push([name, raw[i + 1]]);
  }
  found.sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0));
  return found.map(([name, value]) => `${kind} ${name}: ${value}\n`).join('');
}

// Several values under one name, as Node takes fields.
function grouped(fields) {
  const all = {};
  for (const [name, value] of fields) all[name] = name in all ? [all[name], value].flat() : value;
  return all;
}

function read(stream, slowly, done) {
  const hash = crypto.createHash('sha256');
  const kept = [];
  let length = 0;
  stream.on('data', (data) => {
    hash.update(data);
    length += data.length;
    if (length < 10000) kept.push(data);
    if (slowly) {
      stream.pause();
      setTimeout(() => stream.resume(), 4);
    }
  });
  stream.on('end', () => done(`body ${length} ${hash.digest('hex')}\n`, length < 10000 ? Buffer.concat(kept).toString('latin1') : ''));
}

function send(request, s) {
  const write = () => {
    if (s.body >= 0) {
      const body = pattern(s.body);
      // In two pieces, so that the length is not found out.
      if (s.chunked && s.body > 1) {
        request.write(body.subarray(0, s.body / 2));
        request.write(body.subarray(s.body / 2));
      } else if (s.body > 0) request.write(body);
    }
    if (s.trailer && request.addTrailers) request.addTrailers({ 'x-sum': '1' });
    request.end();
  };
  if (!s.expect) return write();
  // Once, also where the server says nothing: its answer may be all there is.
  let written = false;
  const once = () => written || request.destroyed || ((written = true), write());
  request.once('continue', once);
  const later = setTimeout(once, 1000);
  request.once('response', () => (clearTimeout(later), once()));
}

function http1(s, port, agent, connections) {
  return new Promise((resolve, reject) => {
    const fields = [['user-agent', 'pairs'], ...s.fields];
    if (s.body >= 0) fields.push(s.chunked ? ['transfer-encoding', 'chunked'] : ['content-length', String(s.body)]);
    if (s.expect) fields.push(['expect', '100-continue']);
    if (s.trailer) fields.push(['trailer', 'x-sum']);
    const request = http.request({ host, port, method: s.method, path: s.target, agent, headers: grouped(fields) });
    let hints = '';
    request.on('information', (info) => {
      if (info.statusCode !== 100) hints += `hint ${info.statusCode}\n${lines('hint', info.rawHeaders)}`;
    });
    request.on('socket', (socket) => connections.add(socket));
    request.on('error', reject);
    request.setTimeout(LIMIT, () => request.destroy(new Error('timed out')));
    request.on('response', (response) => {
      response.on('error', reject);
      response.on('aborted', () => reject(new Error('aborted')));
      const head = `status ${response.statusCode} HTTP/1\n${hints}${lines('field', response.rawHeaders)}`;
      const encoded = 'content-encoding' in response.headers;
      read(response, s.slow, (body, text) => resolve(head + body + (encoded ? '' : text) + lines('trailer', response.rawTrailers)));
    });
    send(request, s);
  });
}

function http2Once(s, session) {
  return new Promise((resolve, reject) => {
    const fields = [[':method', s.method], [':path', s.target], ['user-agent', 'pairs'], ...s.fields];
    if (s.body >= 0 && !s.chunked) fields.push(['content-length', String(s.body)]);
    if (s.expect) fields.push(['expect', '100-continue']);
    const stream = session.request(grouped(fields), { endStream: s.body < 0, waitForTrailers: Boolean(s.trailer) });
    if (s.trailer) stream.on('wantTrailers', () => stream.sendTrailers({ 'x-sum': '1' }));
    let hints = '';
    let head = '';
    let trailers = '';
    let encoded = false;
    stream.on('headers', (headers, flags, raw) => {
      if (headers[':status'] !== 100) hints += `hint ${headers[':status']}\n${lines('hint', raw)}`;
    });
    stream.on('response', (headers, flags, raw) => {
      head = `status ${headers[':status']} HTTP/2\n${hints}${lines('field', raw)}`;
      encoded = 'content-encoding' in headers;
    });
    stream.on('trailers', (headers, flags, raw) => (trailers = lines('trailer', raw)));
    stream.on('error', reject);
    let whole;
    stream.on('close', () => (stream.rstCode === 0 && head && whole ? resolve(head + whole) : reject(new Error('cut'))));
    stream.setTimeout(LIMIT, () => reject(new Error('timed out')));
    // The end is also said for a stream that was reset.
    read(stream, s.slow, (body, text) => (whole = body + (encoded ? '' : text) + trailers));
    if (s.body >= 0) send(stream, s);
  });
}

async function observe(s, mode, port) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const connections = new Set();
  let session;
  try {
    if (mode === 'h2') {
      session = http2.connect(`http://${host}:${port}`);
      session.on('error', () => {});
      connections.add(session);
    }
    let last;
    for (let i = 0; i < s.times; i++) {
      const found = await (mode === 'h2' ? http2Once(s, session) : http1(s, port, agent, connections));
      if (i && found !== last) return `different answers:\n${last}${found}`;
      last = found;
    }
    last = last.replaceAll(host, 'HOST');
    return s.times > 1 ? `${last}connections ${connections.size}\n` : last;
  } catch (error) {
    console.error(port, s.name, error.message);
    return 'error';
  } finally {
    agent.destroy();
    session?.destroy();
  }
}

async function all(mode, port) {
  for (const s of scenarios()) {
    console.log([`node-${mode}`, port, s.name, JSON.stringify(await observe(s, mode, port))].join('\t'));
  }
}

for (const modeAndPort of ports) all(...modeAndPort.split(':'));
