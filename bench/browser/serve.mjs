// SPDX-License-Identifier: Apache-2.0
// node bench/browser/serve.mjs [port]: serves the repository's page, module and onnxruntime-web to this machine
// alone. First: wasm/build.sh, and `npm install` in wasm/.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const FOLDERS = ["bench/browser/", "bench/wasm/", "wasm/"];
const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
};

/** Listens on 127.0.0.1; onReport(text) gets what a page posts to /report. Answers { url, close }. */
export async function serve(port = 0, onReport = () => {}) {
  const server = createServer(async (request, response) => {
    const path = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
    if (request.method === "POST" && path === "/report") {
      let body = "";
      for await (const part of request) body += part;
      response.writeHead(204).end();
      onReport(body);
      return;
    }
    const file = normalize(path).replace(/^\/+/, "");
    const type = TYPES[extname(file)];
    try {
      if (type === undefined || !FOLDERS.some((folder) => file.startsWith(folder))) throw new Error("not served");
      const body = await readFile(join(ROOT, file));
      response.writeHead(200, {
        "content-type": type,
        // onnxruntime-web's module has shared memory, which browsers give to isolated pages only.
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-embedder-policy": "require-corp",
      });
      response.end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}/bench/browser/index.html`,
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  console.log((await serve(Number(process.argv[2] ?? 8000))).url);
}
