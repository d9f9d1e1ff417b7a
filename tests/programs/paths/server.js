// Answers as applications on Node do: `x-handler: login` where any usual way of looking at req.url
// leads to /login. server.js PORT
const http = require('node:http');

function readings(url) {
  const path = (text) => text.split(/[?#]/)[0];
  const all = [path(url)];
  try {
    all.push(new URL(url, 'http://localhost').pathname);
  } catch {}
  for (let text = url, times = 0; times < 2; times++) {
    try {
      text = decodeURIComponent(text);
    } catch {
      break;
    }
    all.push(path(text));
  }
  return all;
}

http
  .createServer((request, response) => {
    // As Express does where its routing is not strict.
    const login = readings(request.url).some((path) => path.replace(/\/$/, '') === '/login');
    response.setHeader('x-handler', login ? 'login' : 'other');
    response.setHeader('x-raw', request.url);
    response.end();
  })
  .listen(Number(process.argv[2]));
