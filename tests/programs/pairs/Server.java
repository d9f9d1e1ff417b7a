// The server of the pairs (scenarios.txt) on com.sun.net.httpserver. Server PORT...
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.TreeMap;
import java.util.concurrent.Executors;
import java.util.zip.GZIPOutputStream;

public class Server {
    static final String HOP = "connection|keep-alive|transfer-encoding|te|trailer|upgrade|http2-settings"
        + "|x-forwarded-client-cert|weft-.*|traceparent|tracestate";

    static byte[] pattern(int n) {
        byte[] bytes = new byte[n];
        for (int i = 0; i < n; i++) bytes[i] = (byte) "0123456789abcdef".charAt(i % 16);
        return bytes;
    }

    static void report(HttpExchange exchange) throws Exception {
        MessageDigest hash = MessageDigest.getInstance("SHA-256");
        long length = 0;
        byte[] buffer = new byte[65536];
        InputStream body = exchange.getRequestBody();
        for (int n; (n = body.read(buffer)) >= 0; length += n) hash.update(buffer, 0, n);
        TreeMap<String, List<String>> fields = new TreeMap<>();
        exchange.getRequestHeaders().forEach((name, values) -> fields.put(name.toLowerCase(), values));
        StringBuilder text = new StringBuilder();
        text.append("method ").append(exchange.getRequestMethod()).append('\n');
        text.append("target ").append(exchange.getRequestURI()).append('\n');
        fields.forEach((name, values) -> {
            if (name.equals("cookie")) values = List.of(String.join("; ", values));
            if (!name.matches(HOP)) for (String value : values) text.append("field " + name + ": " + value + "\n");
        });
        String digest = HexFormat.of().formatHex(hash.digest()).substring(0, 16);
        text.append("body " + length + " " + digest + "\n");
        exchange.getResponseHeaders().set("x-method", exchange.getRequestMethod());
        send(exchange, 200, text.toString().getBytes(StandardCharsets.ISO_8859_1));
    }

    static void send(HttpExchange exchange, int status, byte[] body) throws IOException {
        if (exchange.getRequestMethod().equals("HEAD") || body.length == 0) {
            if (status == 200) exchange.getResponseHeaders().set("Content-Length", "" + body.length);
            exchange.sendResponseHeaders(status, -1);
        } else {
            exchange.sendResponseHeaders(status, body.length);
            exchange.getResponseBody().write(body);
        }
        exchange.close();
    }

    static void answer(HttpExchange exchange) throws Exception {
        String path = exchange.getRequestURI().getPath(), query = exchange.getRequestURI().getQuery();
        int n = query != null && query.matches("(n|code)=\\d+") ? Integer.parseInt(query.split("=")[1]) : 0;
        if (path.startsWith("/report")) {
            report(exchange);
            return;
        }
        if (path.equals("/early")) {
            exchange.getResponseHeaders().set("Connection", "close");
            send(exchange, 413, "too large".getBytes());
            return;
        }
        exchange.getRequestBody().readAllBytes();
        switch (path) {
            case "/bytes" -> send(exchange, 200, pattern(n));
            case "/chunked" -> {
                boolean head = exchange.getRequestMethod().equals("HEAD");
                exchange.sendResponseHeaders(200, head ? -1 : 0);
                if (!head) exchange.getResponseBody().write(pattern(n));
                exchange.close();
            }
            case "/status" -> {
                exchange.getResponseHeaders().set("ETag", "\"a\"");
                send(exchange, n, new byte[0]);
            }
            case "/gzip" -> {
                ByteArrayOutputStream bytes = new ByteArrayOutputStream();
                try (GZIPOutputStream gzip = new GZIPOutputStream(bytes)) {
                    gzip.write(pattern(1000));
                }
                exchange.getResponseHeaders().set("Content-Encoding", "gzip");
                send(exchange, 200, bytes.toByteArray());
            }
            case "/cookies" -> {
                exchange.getResponseHeaders().add("Set-Cookie", "a=1");
                exchange.getResponseHeaders().add("Set-Cookie", "b=2");
                send(exchange, 200, "c".getBytes());
            }
            case "/large-head" -> {
                exchange.getResponseHeaders().set("X-Large", "x".repeat(n));
                send(exchange, 200, "large".getBytes());
            }
            case "/truncated" -> {
                exchange.sendResponseHeaders(200, query == null ? 1000 : 0);
                OutputStream body = exchange.getResponseBody();
                body.write("half".getBytes());
                body.flush();
                throw new IOException("cut");
            }
            case "/slow" -> {
                Thread.sleep(300);
                send(exchange, 200, "slow".getBytes());
            }
            default -> send(exchange, 404, "no such thing".getBytes());
        }
    }

    public static void main(String[] args) throws Exception {
        for (String port : args) {
            HttpServer server = HttpServer.create(new InetSocketAddress(Integer.parseInt(port)), 200);
            server.setExecutor(Executors.newCachedThreadPool());
            server.createContext("/", exchange -> {
                try {
                    answer(exchange);
                } catch (IOException error) {
                    throw error;
                } catch (Exception error) {
                    throw new IOException(error);
                }
            });
            server.start();
        }
    }
}
