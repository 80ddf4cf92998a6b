// Draws pictures with the graph of a cfgdiff bundle: no Python, ONNX Runtime alone. DDIM (Song et al. 2021), a grid as PNG.
//
//   node draw.mjs [--bundle FOLDER] [--class NAME[,NAME...]] [--n N] [--steps N] [--guidance W] [--seed N] [--out FILE.png]

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { deflateSync } from "node:zlib";
import * as ort from "onnxruntime-node";

const PACKAGED = fileURLToPath(new URL("../../runtime/models/cifar10-small", import.meta.url));

/** alpha_bar(t): equation 17 of Nichol & Dhariwal 2021, its last beta clipped at 0.999. */
function cosineAlphaBar(t, T) {
  const f = (u) => Math.cos(((u / T + 0.008) / 1.008) * (Math.PI / 2)) ** 2;
  return Math.max(f(t), f(T - 1) * 0.001) / f(0);
}

/** What the answer p at x_t implies, for one value: the clean picture x0 and the noise eps. */
const IMPLIED = {
  v: (p, x, alpha, sigma) => [alpha * x - sigma * p, sigma * x + alpha * p],
  eps: (p, x, alpha, sigma) => [(x - sigma * p) / alpha, p],
  x0: (p, x, alpha, sigma) => [p, (x - alpha * p) / sigma],
};

/** A generator of standard normal numbers: mulberry32 and Box & Muller 1958. */
function normals(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z = (z + Math.imul(z ^ (z >>> 7), z | 61)) ^ z;
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

/** B pictures as values in [-1, 1], (B, C, H, W). Guidance 1 leaves the guided rows out, at half the cost. */
export async function draw(session, description, labels, steps, guidance, seed) {
  const { T, prediction, data_std: dataStd } = description.schedule;
  const [shape, B] = [description.image_shape, labels.length];
  const next = normals(seed);
  const x = Float32Array.from({ length: B * shape[0] * shape[1] * shape[2] }, next);
  const w = new Float32Array(guidance === 1 ? 0 : B).fill(guidance); // the first G rows are guided
  for (let i = 0; i < steps; i++) {
    const [t, s] = [(T * (steps - i)) / steps, (T * (steps - i - 1)) / steps];
    const { prediction: answer } = await session.run({
      sample: new ort.Tensor("float32", x, [B, ...shape]),
      timestep: new ort.Tensor("float32", new Float32Array(B).fill(t), [B]),
      class_label: new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [B]),
      guidance: new ort.Tensor("float32", w, [w.length]),
    });
    const [now, then] = [cosineAlphaBar(t, T), cosineAlphaBar(s, T)];
    for (let k = 0; k < x.length; k++) {
      const [x0, eps] = IMPLIED[prediction](answer.data[k], x[k], Math.sqrt(now), Math.sqrt(1 - now));
      x[k] = Math.sqrt(then) * x0 + Math.sqrt(1 - then) * eps;
    }
  }
  return x.map((value) => Math.min(1, Math.max(-1, value * dataStd)));
}

/** Pictures (B, C, H, W) in [-1, 1] side by side, `columns` in a row: rows of RGB or grey bytes. */
function grid(pictures, B, [C, H, W], columns) {
  const rows = Math.ceil(B / columns);
  const bytes = Buffer.alloc(rows * H * columns * W * C);
  for (let b = 0; b < B; b++)
    for (let c = 0; c < C; c++)
      for (let y = 0; y < H; y++)
        for (let i = 0; i < W; i++) {
          const at = ((Math.floor(b / columns) * H + y) * columns + (b % columns)) * W + i;
          bytes[at * C + c] = Math.round((pictures[((b * C + c) * H + y) * W + i] + 1) * 127.5);
        }
  return { bytes, width: columns * W, height: rows * H, channels: C };
}

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let k = 0; k < 8; k++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

/** The bytes of a PNG. */
function png({ bytes, width, height, channels }) {
  const chunk = (kind, data) => {
    const [head, tail] = [Buffer.alloc(4), Buffer.alloc(4)];
    const body = Buffer.concat([Buffer.from(kind, "latin1"), data]);
    head.writeUInt32BE(data.length);
    tail.writeUInt32BE(crc32(body));
    return Buffer.concat([head, body, tail]);
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width);
  header.writeUInt32BE(height, 4);
  header.set([8, channels === 1 ? 0 : 2], 8); // 8 bits, grey or RGB
  const stride = width * channels;
  const lines = Array.from({ length: height }, (_, y) => [Buffer.from([0]), bytes.subarray(y * stride, (y + 1) * stride)]).flat();
  const parts = [chunk("IHDR", header), chunk("IDAT", deflateSync(Buffer.concat(lines))), chunk("IEND", Buffer.alloc(0))];
  return Buffer.concat([Buffer.from("\x89PNG\r\n\x1a\n", "latin1"), ...parts]);
}

async function main() {
  const option = (fallback) => ({ type: "string", default: fallback });
  const { values } = parseArgs({
    options: {
      bundle: option(PACKAGED), class: option("frog"), n: option("8"), steps: option("20"), guidance: option("3"), seed: option("0"),
      out: option("pictures.png"),
    },
  });
  const description = JSON.parse(readFileSync(join(values.bundle, "bundle.json"), "utf8"));
  if (description.schedule.kind !== "cosine") throw new Error(`${values.bundle}: expected a cosine schedule, found ${description.schedule.kind}`);
  const classes = values.class === "all" ? description.class_names : values.class.split(",");
  const labels = Array.from({ length: Number(values.n) }, (_, i) => description.class_names.indexOf(classes[i % classes.length]));
  if (!labels.length || labels.includes(-1)) throw new Error(`--class, --n: choose from ${description.class_names.join(", ")} and at least 1`);
  const session = await ort.InferenceSession.create(join(values.bundle, description.variants.float32.graph));
  const pictures = await draw(session, description, labels, Number(values.steps), Number(values.guidance), Number(values.seed));
  const columns = classes.length > 1 ? Math.min(classes.length, labels.length) : Math.ceil(Math.sqrt(labels.length));
  writeFileSync(values.out, png(grid(pictures, labels.length, description.image_shape, columns)));
  console.log(`${labels.length} pictures in ${values.out}`);
}

main().catch((error) => {
  console.error(`Error: ${error.message}`);
  process.exitCode = 1;
});
