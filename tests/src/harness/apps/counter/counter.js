const N = 100000;
const numbers = Array.from({ length: N }, (_, i) => Math.imul(i, 2654435761) >>> 0);
let count = 0;

function answer(line) {
  if (line === "count") {
    count += 1;
    const at = (count * 7919) % N;
    numbers[at] = (numbers[at] + count) >>> 0;
    return count;
  }
  return numbers.reduce((sum, number) => (Math.imul(sum, 31) + number) >>> 0, 0);
}

require("net")
  .createServer((socket) => {
    let rest = "";
    socket.on("error", () => {});
    socket.on("data", (data) => {
      rest += data;
      for (let end; (end = rest.indexOf("\n")) >= 0; rest = rest.slice(end + 1)) {
        socket.write(`${answer(rest.slice(0, end))}\n`);
      }
    });
  })
  .listen(7100, "0.0.0.0");
