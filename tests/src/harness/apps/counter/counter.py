import socketserver
import threading

import numpy

N = 100_000
numbers = numpy.arange(N, dtype=numpy.uint32) * numpy.uint32(2654435761)
# The sum is a polynomial in 31 over the numbers, modulo 2^32: its coefficients, highest first.
powers = numpy.ones(N, dtype=numpy.uint32)
powers[1:] = 31
powers = numpy.cumprod(powers, dtype=numpy.uint32)[::-1].copy()
count = 0
lock = threading.Lock()


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        global count
        for line in self.rfile:
            with lock:
                if line.strip() == b"count":
                    count += 1
                    numbers[count * 7919 % N] += numpy.uint32(count)
                    answer = count
                else:
                    answer = int((numbers * powers).sum(dtype=numpy.uint32))
            self.wfile.write(b"%d\n" % answer)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


with Server(("0.0.0.0", 7100), Handler) as server:
    server.serve_forever()
