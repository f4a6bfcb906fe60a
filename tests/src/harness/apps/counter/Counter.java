import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.net.ServerSocket;
import java.net.Socket;

public class Counter {
    static final int N = 100_000;
    static final Integer[] numbers = new Integer[N];
    static int count = 0;

    public static void main(String[] arguments) throws IOException {
        for (int i = 0; i < N; i++) {
            numbers[i] = i * (int) 2654435761L;
        }
        try (ServerSocket server = new ServerSocket(7100)) {
            while (true) {
                Socket socket = server.accept();
                new Thread(() -> serve(socket)).start();
            }
        }
    }

    static void serve(Socket socket) {
        try (socket; BufferedReader in = new BufferedReader(new InputStreamReader(socket.getInputStream()))) {
            OutputStream out = socket.getOutputStream();
            for (String line; (line = in.readLine()) != null; ) {
                out.write((answer(line) + "\n").getBytes());
                out.flush();
            }
        } catch (IOException end) {
            // The client is gone.
        }
    }

    static synchronized String answer(String line) {
        if (line.equals("count")) {
            count += 1;
            int at = (int) (count * 7919L % N);
            numbers[at] = numbers[at] + count;
            return Integer.toString(count);
        }
        int sum = 0;
        for (Integer number : numbers) {
            sum = sum * 31 + number;
        }
        return Integer.toUnsignedString(sum);
    }
}
