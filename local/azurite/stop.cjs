// Loaded into Azurite before it starts. Azurite saves the changes of the last seconds only on SIGINT, and a second
// SIGINT ends it while it saves. Therefore every stop signal becomes a SIGINT, and a second one is ignored.
let stopping = false;

function stop() {
  if (stopping) return;
  stopping = true;
  if (process.listenerCount("SIGINT") === 1) process.exit(); // Azurite has not started, so there is nothing to save
  process.emit("SIGINT");
}

process.on("SIGINT", () => {});
for (const signal of ["SIGTERM", "SIGBREAK"]) process.on(signal, stop);
