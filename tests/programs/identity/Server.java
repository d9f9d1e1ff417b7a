// An HTTP server that prints and answers with the caller's identity as it sees it.
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;

public class Server {
    public static void main(String[] args) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(Integer.parseInt(args[0])), 0);
        server.createContext("/", exchange -> {
            String seen = exchange.getRequestHeaders().getFirst("X-Forwarded-Client-Cert");
            seen = seen == null ? "-" : seen;
            System.out.println(exchange.getRequestMethod() + " " + exchange.getRequestURI() + " identity=" + seen);
            exchange.getRequestBody().readAllBytes();
            byte[] answer = ("identity=" + seen + "\n").getBytes(StandardCharsets.UTF_8);
            exchange.sendResponseHeaders(200, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.start();
    }
}
