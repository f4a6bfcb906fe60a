import socketserver

N = 100_000
numbers = [(i * 2654435761) & 0xFFFFFFFF for i in range(N)]
count = 0


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        global count
        for line in self.rfile:
            if line.strip() == b"count":
                count += 1
                at = count * 7919 % N
                numbers[at] = (numbers[at] + count) & 0xFFFFFFFF
                answer = count
            else:
                answer = 0
                for number in numbers:
                    answer = (answer * 31 + number) & 0xFFFFFFFF
            self.wfile.write(b"%d\n" % answer)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


with Server(("0.0.0.0", 7100), Handler) as server:
    server.serve_forever()
