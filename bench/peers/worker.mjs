// Workers that post a request for each job, 64 at a time: node worker.mjs KIND DATABASE URL.
import http from "node:http";
import { createRequire } from "node:module";

const require = createRequire(process.env.NODE_PATH + "/");
const IN_FLIGHT = 64;
const [kind, database, url] = process.argv.slice(2);
const body = JSON.stringify({
  from: "hello@acme.dev", to: ["ada@acme.dev"], subject: "Hello", html: "<p>" + "x".repeat(5000),
});
const agent = new http.Agent({ keepAlive: true, maxSockets: IN_FLIGHT });

function post() {
  return new Promise((resolve, reject) => {
    const request = http.request(
      url + "/emails",
      { method: "POST", agent, headers: { "content-type": "application/json", "content-length": Buffer.byteLength(body) } },
      (answer) => answer.resume().on("end", resolve),
    );
    request.on("error", reject);
    request.end(body);
  });
}

if (kind.endsWith("graphile")) {
  const { run, runMigrations, Logger } = require("graphile-worker");
  const logger = new Logger(() => () => {});
  if (kind === "install-graphile") {
    await runMigrations({ connectionString: database, logger });
  } else {
    await run({
      connectionString: database, logger, concurrency: IN_FLIGHT, noHandleSignals: true,
      taskList: { mail: post },
      preset: { worker: { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 } },
    });
    console.log("ready");
  }
} else {
  const Boss = require("pg-boss");
  const boss = new Boss({ connectionString: database, supervise: false, schedule: false });
  boss.on("error", console.error);
  await boss.start();
  if (kind === "install-boss") {
    await boss.createQueue("bench");
    await boss.stop();
  } else {
    // Its poll is half a second, the shortest it takes; several fetchers share the sockets.
    for (let i = 0; i < 4; i++) {
      await boss.work("bench", { batchSize: 1000, pollingIntervalSeconds: 0.5 }, (jobs) => Promise.all(jobs.map(post)));
    }
    console.log("ready");
  }
}
