// SPDX-License-Identifier: Apache-2.0
// Reads the safetensors files of sparsekern.save_file as untrusted input: every offset, size and checksum is
// checked. No kernel is involved; packed arrays are validated when they become a matrix.

const VERSION = 1;
const TYPES = {
  F32: ["float32", Float32Array],
  BF16: ["bfloat16", Uint16Array],
  F16: ["float16", Uint16Array],
  I8: ["int8", Int8Array],
  U8: ["uint8", Uint8Array],
  BOOL: ["bool", Uint8Array],
  I64: ["int64", BigInt64Array],
  I32: ["int32", Int32Array],
  F64: ["float64", Float64Array],
};
const KINDS = ["csr_linear", "csr_conv2d", "nm_linear", "bitmap_linear", "gqs_linear"];

function fail(text) {
  throw new RangeError(`sparsekern.checkpoint: ${text}`);
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; ++bit) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

// CRC-32 as of zlib, continued from `crc`.
function crc32(bytes, crc = 0) {
  let value = ~crc;
  for (let i = 0; i < bytes.length; ++i) value = CRC_TABLE[(value ^ bytes[i]) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}
const hex = (crc) => crc.toString(16).padStart(8, "0");

function parseJson(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    return fail(`${what} must be JSON, got: ${error.message}`);
  }
}

function readTensor(name, raw, data) {
  const [dtype, type] = TYPES[raw?.dtype] ?? fail(`tensor ${name} has the unknown dtype ${raw?.dtype}`);
  const { shape, data_offsets: offsets } = raw;
  const sizes = Array.isArray(shape) && shape.every((n) => Number.isSafeInteger(n) && n >= 0);
  const range = Array.isArray(offsets) && offsets.length === 2 && offsets.every(Number.isSafeInteger);
  if (!sizes || !range) fail(`tensor ${name} must have a shape and two offsets`);
  const length = shape.reduce((a, b) => a * b, 1);
  const [begin, end] = offsets;
  if (begin < 0 || end > data.length || end - begin !== length * type.BYTES_PER_ELEMENT) {
    fail(`tensor ${name} must lie inside the file and have ${length} elements`);
  }
  const bytes = data.slice(begin, end); // aligned for its type
  const head = new TextEncoder().encode(`${name}|torch.${dtype}|[${shape.join(", ")}]|`);
  return { dtype, shape, data: new type(bytes.buffer), crc: () => hex(crc32(bytes, crc32(head))) };
}

function readLayer(name, raw, tensors) {
  const key = (part) => (name === "" ? part : `${name}.${part}`);
  const part = (which) => tensors.get(key(which)) ?? null;
  const [values, structure, scale, bias] = ["values", "structure", "scale", "bias"].map(part);
  if (values === null || structure === null || structure.dtype !== "uint8") {
    fail(`layer ${name} must have values and structure`);
  }
  const { kind, shape, activation = "none", stride = 1, int8_activations: int8Activations = false } = raw ?? {};
  if (!KINDS.includes(kind)) fail(`layer ${name} has the unknown kind ${kind}`);
  if (kind === "gqs_linear" && scale === null) fail(`layer ${name} must have a scale`);
  if (!Array.isArray(shape) || shape.length !== 2) fail(`layer ${name} must have a shape [rows, cols]`);
  return { kind, shape, activation, stride, int8Activations: int8Activations === true, values, structure, scale, bias: floats(bias, name) };
}

// Biases are added in float32, whatever the model's dtype.
function floats(tensor, name) {
  if (tensor === null) return null;
  if (tensor.dtype === "float32") return tensor.data;
  if (tensor.dtype === "bfloat16") {
    return new Float32Array(Uint32Array.from(tensor.data, (bits) => bits << 16).buffer);
  }
  if (tensor.dtype === "float16") return Float32Array.from(tensor.data, float16);
  return fail(`bias of layer ${name} must be floating-point, got ${tensor.dtype}`);
}

function float16(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const sign = bits & 0x8000 ? -1 : 1;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
}

/** bytes: the file. Answers { tensors: Map, layers: Map of name -> arrays and what the metadata say }. */
export function readCheckpoint(bytes) {
  const file = bytes instanceof ArrayBuffer ? new Uint8Array(bytes) : bytes;
  if (!(file instanceof Uint8Array)) {
    throw new TypeError("sparsekern.checkpoint: bytes must be an ArrayBuffer or a Uint8Array");
  }
  if (file.length < 8) fail(`the file must have at least 8 bytes, got ${file.length}`);
  const length = Number(new DataView(file.buffer, file.byteOffset, 8).getBigUint64(0, true));
  if (length > file.length - 8) fail(`the header must lie inside the file, got ${length} bytes of ${file.length}`);
  const { __metadata__: metadata, ...entries } = parseJson(new TextDecoder().decode(file.subarray(8, 8 + length)), "the header");
  const text = metadata?.sparsekern;
  if (typeof text !== "string") fail("the file must be one of sparsekern.save_file, got other safetensors");
  const described = parseJson(text, "the metadata");
  if (described?.version > VERSION) fail(`version must be at most ${VERSION}, got ${described.version}: a newer sparsekern reads it`);
  if (described?.version !== VERSION) fail(`version must be ${VERSION}, got ${described?.version}`);
  if (metadata["sparsekern.crc32"] !== hex(crc32(new TextEncoder().encode(text)))) fail("the metadata are damaged");
  const data = file.subarray(8 + length);
  const tensors = new Map();
  for (const [name, raw] of Object.entries(entries)) {
    const tensor = readTensor(name, raw, data);
    if (described.crc32?.[name] !== tensor.crc()) fail(`tensor ${name} is damaged: its checksum differs`);
    tensors.set(name, { dtype: tensor.dtype, shape: tensor.shape, data: tensor.data });
  }
  for (const [alias, name] of Object.entries(described.aliases ?? {})) {
    if (tensors.has(alias) || !tensors.has(name)) fail(`the tie ${alias} to ${name} is none`);
    tensors.set(alias, tensors.get(name));
  }
  const layers = new Map();
  for (const [name, raw] of Object.entries(described.layers ?? {})) layers.set(name, readLayer(name, raw, tensors));
  return { tensors, layers };
}
