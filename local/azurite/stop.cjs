// Loaded into Azurite before it starts. It writes the last seconds' changes down on SIGINT alone, and a second SIGINT
// would end it while it writes. So: every way of asking it to stop is a SIGINT, and the second one does nothing.
let asked = false;

function stop() {
  if (asked) return;
  asked = true;
  if (process.listenerCount("SIGINT") === 1) process.exit(); // it has not started yet: there is nothing to write
  process.emit("SIGINT");
}

process.on("SIGINT", () => {});
for (const signal of ["SIGTERM", "SIGBREAK"]) process.on(signal, stop);
