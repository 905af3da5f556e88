// Loaded into Azurite: handles one write at a time and acknowledges it only once it is on disk. Azurite itself saves every
// five seconds, so a kill would lose acknowledged writes, which the real service never does.
const http = require("http");
const Loki = require(require.resolve("lokijs", { paths: [process.argv[1]] }));

let database;
let last = Promise.resolve();

const { configureOptions } = Loki.prototype;
Loki.prototype.configureOptions = function (options, ...rest) {
  database = this;
  return configureOptions.call(this, { ...options, autosave: false }, ...rest); // autosave could save half of a transaction
};

const { emit } = http.Server.prototype;
http.Server.prototype.emit = function (event, request, response) {
  if (event !== "request" || request.method === "GET") return emit.apply(this, arguments);
  last = last.then(() => {
    const written = answeredWhenSaved(response);
    emit.call(this, event, request, response);
    return written;
  });
  return true;
};

function answeredWhenSaved(response) {
  const { write, end } = response;
  const pieces = [];
  response.write = (...piece) => pieces.push(piece) > 0;
  return new Promise((written) => {
    response.end = (...piece) => {
      database.saveDatabase(() => {
        pieces.forEach((earlier) => write.apply(response, earlier));
        end.apply(response, piece);
        written();
      });
      return response;
    };
  });
}
