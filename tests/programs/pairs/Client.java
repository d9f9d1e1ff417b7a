// The client of the pairs (scenarios.txt) on java.net.http. Client HOST SCENARIOS MODE:PORT...
// In mode h2 it offers h2c by upgrade, as HttpClient does by default.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.io.ByteArrayInputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

public class Client {
    // As long as every other client waits.
    static final Duration LIMIT = Duration.ofSeconds(30);

    static byte[] pattern(int n) {
        byte[] bytes = new byte[n];
        for (int i = 0; i < n; i++) bytes[i] = (byte) "0123456789abcdef".charAt(i % 16);
        return bytes;
    }

    static String once(HttpClient client, String host, String port, String[] words) throws Exception {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create("http://" + host + ":" + port + words[2]));
        request.timeout(LIMIT).header("user-agent", "pairs");
        int body = -1;
        boolean chunked = false;
        for (int i = 3; i < words.length; i++) {
            String[] option = words[i].split("=", 2);
            switch (option[0]) {
                case "body" -> body = Integer.parseInt(option[1]);
                case "chunked" -> chunked = true;
                case "expect" -> request.expectContinue(true);
                case "big" -> request.header("x-big", "b".repeat(Integer.parseInt(option[1])));
                case "header" -> {
                    String[] field = option[1].split(":", 2);
                    request.header(field[0], field[1].replace('_', ' '));
                }
                default -> { }
            }
        }
        byte[] bytes = pattern(Math.max(body, 0));
        BodyPublisher publisher = body < 0 ? BodyPublishers.noBody()
            : chunked ? BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(bytes))
            : BodyPublishers.ofByteArray(bytes);
        request.method(words[1], publisher);
        HttpResponse<byte[]> response = client.send(request.build(), BodyHandlers.ofByteArray());
        StringBuilder text = new StringBuilder();
        String version = response.version() == HttpClient.Version.HTTP_2 ? "HTTP/2" : "HTTP/1";
        text.append("status " + response.statusCode() + " " + version + "\n");
        response.headers().map().forEach((name, values) -> {
            String lower = name.toLowerCase();
            if (!lower.matches(":.*|date|connection|keep-alive|transfer-encoding|trailer"))
                for (String value : values) text.append("field " + lower + ": " + value + "\n");
        });
        MessageDigest hash = MessageDigest.getInstance("SHA-256");
        byte[] read = response.body();
        text.append("body " + read.length + " " + HexFormat.of().formatHex(hash.digest(read)) + "\n");
        if (read.length < 10000 && response.headers().firstValue("content-encoding").isEmpty())
            text.append(new String(read, StandardCharsets.ISO_8859_1));
        return text.toString().replace(host, "HOST");
    }

    static String observe(String mode, String host, String port, String line) {
        String[] words = line.split("\\s+");
        HttpClient client = HttpClient.newBuilder()
            .version(mode.equals("h2") ? HttpClient.Version.HTTP_2 : HttpClient.Version.HTTP_1_1).build();
        int times = 1;
        for (String word : words) if (word.startsWith("times=")) times = Integer.parseInt(word.substring(6));
        String last = null;
        try {
            for (int i = 0; i < times; i++) {
                String found = once(client, host, port, words);
                if (last != null && !found.equals(last)) return "different answers:\n" + last + found;
                last = found;
            }
            return last;
        } catch (Exception error) {
            System.err.println(port + " " + words[0] + " " + error);
            return "error";
        }
    }

    static String quoted(String text) {
        StringBuilder all = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') all.append('\\').append(c);
            else if (c == '\n') all.append("\\n");
            else if (c < 32 || c > 126) all.append(String.format("\\u%04x", (int) c));
            else all.append(c);
        }
        return all.append('"').toString();
    }

    public static void main(String[] args) throws Exception {
        List<String> lines = new ArrayList<>(Files.readAllLines(Path.of(args[1])));
        // HttpClient in Java 17 waits for ever where an expectation is refused.
        lines.removeIf(line -> line.isBlank() || line.startsWith("#") || line.startsWith("expect-refused"));
        ExecutorService all = Executors.newCachedThreadPool();
        for (int i = 2; i < args.length; i++) {
            String mode = args[i].split(":")[0], port = args[i].split(":")[1];
            all.submit(() -> {
                for (String line : lines) {
                    String found = quoted(observe(mode, args[0], port, line));
                    System.out.println("java-" + mode + "\t" + port + "\t" + line.split("\\s+")[0] + "\t" + found);
                }
            });
        }
        all.shutdown();
        all.awaitTermination(5, TimeUnit.MINUTES);
        System.exit(0);
    }
}
