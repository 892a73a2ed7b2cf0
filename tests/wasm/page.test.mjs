// SPDX-License-Identifier: Apache-2.0
// The page in a headless Chromium ($CHROMIUM, default chromium): it must check, measure and show a ratio. Whether
// the ratio is high enough is for the benchmark: a test on a busy machine asks for a right result only.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { serve } from "../../bench/browser/serve.mjs";

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
  "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
];

test("the page measures sparse against dense in Chromium", { timeout: 300_000 }, async (t) => {
  const profile = await mkdtemp(join(tmpdir(), "sparsekern-page-"));
  let resolve;
  let reject;
  const reported = new Promise((yes, no) => ([resolve, reject] = [yes, no]));
  const site = await serve(0, resolve);
  const url = `${site.url}?report&sparsities=0.8,0.9&repeats=5`;
  const browser = spawn(process.env.CHROMIUM ?? "chromium", [...FLAGS, `--user-data-dir=${profile}`, url], {
    stdio: ["ignore", "ignore", "pipe"],
    detached: true, // a process group, so that its helpers end with it
  });
  let log = "";
  browser.stderr.on("data", (data) => (log += data));
  browser.on("error", reject);
  const ended = new Promise((done) => browser.on("close", done));
  browser.on("exit", (code) => reject(new Error(`Chromium ended with ${code}:\n${log}`)));
  const tooLate = setTimeout(() => reject(new Error(`the page did not report:\n${log}`)), 240_000);
  try {
    const { error, isa, rows, shown } = JSON.parse(await reported);
    assert.equal(error, undefined);
    assert.deepEqual(isa, ["scalar", "simd128", "relaxed"]);
    assert.deepEqual(rows.map((row) => row.sparsity), [0.8, 0.9]);
    for (const row of rows) {
      assert.equal(row.kernel, "csr_conv2d_r1_f32_batch__wasm_simd128");
      assert.ok(row.sparse.min_ms > 0 && row.dense.min_ms > 0);
      assert.ok(shown.includes(`${row.ratio.toFixed(2)} x`), shown);
      t.diagnostic(`${row.sparsity * 100} % zeros: sparse ${row.ratio_of_minima.toFixed(2)} times as fast as dense`);
    }
  } finally {
    clearTimeout(tooLate);
    browser.removeAllListeners("exit");
    if (browser.exitCode === null && browser.pid !== undefined) {
      process.kill(-browser.pid, "SIGKILL");
      await ended;
    }
    site.close();
    await rm(profile, { recursive: true, force: true, maxRetries: 5 });
  }
});

test("the server gives out what the page needs and nothing else", async () => {
  const site = await serve();
  try {
    const status = async (path) => (await fetch(new URL(path, site.url))).status;
    assert.equal(await status("/wasm/sparsekern.mjs"), 200);
    assert.equal(await status("/README.md"), 404);
    assert.equal(await status("/wasm/package.json"), 404);
    assert.equal(await status("/wasm/%2e%2e/tests/wasm/page.test.mjs"), 404);
  } finally {
    site.close();
  }
});
