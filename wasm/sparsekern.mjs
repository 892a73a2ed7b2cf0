// SPDX-License-Identifier: Apache-2.0
// sparsekern in WebAssembly: packed sparse matrices times activations. Types: sparsekern.d.mts.
import { readCheckpoint } from "./checkpoint.mjs";

const ACTIVATIONS = ["none", "relu", "relu6", "gelu", "gelu_tanh", "silu", "hardswish"];
const DTYPES = { float32: 0, bfloat16: 1, float16: 2, int8: 3 };
const ARRAYS = { float32: Float32Array, bfloat16: Uint16Array, float16: Uint16Array, int8: Int8Array, uint8: Uint8Array };
const SCALES = ["float32", "bfloat16", "float16", "uint8"]; // of groups, by their numbers
const LIMIT = 2 ** 31;

// (module (func (result v128) i32.const 0 i8x16.splat)): valid where simd128 is.
const SIMD_PROBE = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11);

// The same of f32x4.relaxed_madd of three of them.
const RELAXED_PROBE = Uint8Array.of(
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 19, 1, 17, 0,
  65, 0, 253, 15, 65, 0, 253, 15, 65, 0, 253, 15, 253, 133, 2, 11,
);

/** Whether this engine runs the simd128 module. */
export function hasSimd() {
  return WebAssembly.validate(SIMD_PROBE);
}

/** Whether this engine runs the relaxed module. */
export function hasRelaxedSimd() {
  return WebAssembly.validate(RELAXED_PROBE);
}

// Best first.
const TIERS = { relaxed: hasRelaxedSimd, simd128: hasSimd, scalar: () => true };

function show(value) {
  if (ArrayBuffer.isView(value)) return `${value.constructor.name}(${value.length})`;
  return typeof value === "string" ? JSON.stringify(value) : String(value);
}

function checkSize(operator, name, value, least = 0) {
  if (!Number.isInteger(value) || value < least || value >= LIMIT) {
    throw new RangeError(`${operator}: ${name} must be an integer in [${least}, 2^31), got ${show(value)}`);
  }
  return value;
}

function checkChoice(operator, name, value, choices) {
  if (!choices.includes(value)) {
    throw new TypeError(`${operator}: ${name} must be one of ${choices.join(", ")}, got ${show(value)}`);
  }
  return choices.indexOf(value);
}

function checkArray(operator, name, value, dtype, length) {
  const array = value instanceof Buffer ? value.array : value;
  if (!(array instanceof ARRAYS[dtype])) {
    throw new TypeError(`${operator}: ${name} must be a ${ARRAYS[dtype].name} for ${dtype}, got ${show(array)}`);
  }
  const fits = value instanceof Buffer ? array.length >= length : array.length === length;
  if (length !== undefined && !fits) {
    throw new RangeError(`${operator}: ${name} must have ${length} elements, got ${array.length}`);
  }
}

function checkMask(operator, mask, length) {
  if (mask !== null && !(mask instanceof Uint8Array && mask.length === length)) {
    throw new TypeError(`${operator}: mask must be a Uint8Array of ${length}, got ${show(mask)}`);
  }
}

async function fetchModule(source) {
  if (source instanceof WebAssembly.Module) return source;
  if (ArrayBuffer.isView(source) || source instanceof ArrayBuffer) return WebAssembly.compile(source);
  const url = new URL(source, import.meta.url);
  if (url.protocol === "file:") {
    const { readFile } = await import("node:fs/promises");
    return WebAssembly.compile(await readFile(url));
  }
  const response = await fetch(url);
  if (!response.ok) throw new Error(`sparsekern.load: ${url} answered ${response.status}`);
  return WebAssembly.compile(await response.arrayBuffer());
}

// What C's library asks of its host: an empty environment, nowhere to write, and a way to stop.
function hostFunctions(module, memory) {
  const imports = {};
  for (const { module: from, name } of WebAssembly.Module.imports(module)) {
    imports[from] ??= {};
    imports[from][name] = () => 8; // EBADF: there are no files
  }
  const wasi = (imports.wasi_snapshot_preview1 ??= {});
  wasi.environ_get = () => 0;
  wasi.environ_sizes_get = (count, bytes) => {
    const view = new DataView(memory().buffer);
    view.setUint32(count, 0, true);
    view.setUint32(bytes, 0, true);
    return 0;
  };
  wasi.proc_exit = (code) => {
    throw new Error(`sparsekern: the module stopped with code ${code} (out of memory?)`);
  };
  return imports;
}

/** Loads the module: options.tier "auto", "relaxed", "simd128" or "scalar"; options.wasm a URL, bytes or a Module. */
export async function load(options = {}) {
  const tier = options.tier ?? "auto";
  checkChoice("sparsekern.load", "tier", tier, ["auto", ...Object.keys(TIERS)]);
  if (tier !== "auto" && !TIERS[tier]()) {
    throw new Error(`sparsekern.load: tier must be one that this engine runs, got ${tier}`);
  }
  const file = tier === "auto" ? Object.keys(TIERS).find((name) => TIERS[name]()) : tier;
  const module = await fetchModule(options.wasm ?? `./dist/sparsekern-${file}.wasm`);
  let exports = null;
  const instance = await WebAssembly.instantiate(module, hostFunctions(module, () => exports.memory));
  exports = instance.exports;
  exports._initialize();
  return new Sparsekern(exports);
}

/**
 * Memory inside the module: activations that stay there are not copied. It may be longer than a call needs, so
 * that two serve a whole chain of layers. Free it with dispose().
 */
class Buffer {
  #c;
  #type;
  constructor(c, pointer, length, dtype) {
    this.#c = c;
    this.#type = ARRAYS[dtype];
    this.pointer = pointer;
    this.length = length;
    this.dtype = dtype;
  }
  /** A view; take it anew after each call, since memory that grows moves. */
  get array() {
    if (this.pointer === 0) throw new Error("Buffer: used after dispose()");
    return new this.#type(this.#c.memory.buffer, this.pointer, this.length);
  }
  dispose() {
    if (this.pointer !== 0) this.#c.sk_free(this.pointer);
    this.pointer = 0;
  }
}

/** One instance of the module. */
class Sparsekern {
  #c;
  #scratch = { x: [0, 0], y: [0, 0], bias: [0, 0] }; // pointer, bytes: grow, never shrink
  constructor(exports) {
    this.#c = exports;
    this.version = this._text(exports.sk_version());
    this.isa = this._text(exports.sk_isa()).split(" ");
  }

  _text(pointer) {
    const bytes = new Uint8Array(this.#c.memory.buffer);
    return new TextDecoder().decode(bytes.subarray(pointer, bytes.indexOf(0, pointer)));
  }
  _allocate(bytes) {
    const pointer = bytes < 2 ** 32 - 64 ? this.#c.sk_malloc(bytes) >>> 0 : 0;
    if (pointer === 0) throw new RangeError(`sparsekern: no memory for ${bytes} bytes`);
    return pointer;
  }
  _copyIn(array) {
    const pointer = this._allocate(array.byteLength);
    this._bytes(pointer, array.byteLength).set(new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
    return pointer;
  }
  _bytes(pointer, length) {
    return new Uint8Array(this.#c.memory.buffer, pointer, length);
  }
  _fail() {
    const message = this._text(this.#c.sk_error());
    throw new RangeError(message === "" ? "sparsekern: no memory for a matrix" : message);
  }
  _made(handle) {
    return handle !== 0 ? handle : this._fail();
  }
  _reserve(name, bytes) {
    let [pointer, held] = this.#scratch[name];
    if (bytes > held || pointer === 0) {
      if (pointer !== 0) this.#c.sk_free(pointer);
      this.#scratch[name] = [0, 0];
      pointer = this._allocate(bytes);
      this.#scratch[name] = [pointer, bytes];
    }
    return pointer;
  }
  // Where an argument lies in the module's memory: its own place, or a copy in scratch memory.
  _place(name, value) {
    if (value === null || value === undefined) return 0;
    const array = value instanceof Buffer ? value.array : value;
    if (array.buffer === this.#c.memory.buffer) return array.byteOffset;
    const pointer = this._reserve(name, array.byteLength);
    this._bytes(pointer, array.byteLength).set(new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
    return pointer;
  }

  /** Memory inside the module for `length` elements, zeroed. */
  buffer(length, dtype = "float32") {
    checkSize("sparsekern.buffer", "length", length);
    checkChoice("sparsekern.buffer", "dtype", dtype, Object.keys(DTYPES));
    const bytes = length * ARRAYS[dtype].BYTES_PER_ELEMENT;
    const buffer = new Buffer(this.#c, this._allocate(bytes), length, dtype);
    buffer.array.fill(0);
    return buffer;
  }

  /** A packed matrix: its two arrays (three for int8) as in docs/formats.md, checked and copied. */
  matrix(packed) {
    return this._matrix("sparsekern.matrix", this.#c.sk_csr_new, CSRMatrix, packed);
  }
  /** The same of an N:M matrix, format nm. */
  nmMatrix(packed) {
    return this._matrix("sparsekern.nmMatrix", this.#c.sk_nm_new, NMMatrix, packed);
  }
  /** The same for the format bitmap. */
  bitmapMatrix(packed) {
    return this._matrix("sparsekern.bitmapMatrix", this.#c.sk_bitmap_new, BitmapMatrix, packed);
  }
  /** Quantized groups, format gqs: scaleDtype says how `scale` is stored. */
  gqsMatrix({ values, structure, scale, scaleDtype = "float16" }) {
    const operator = "sparsekern.gqsMatrix";
    const kind = checkChoice(operator, "scaleDtype", scaleDtype, SCALES);
    checkArray(operator, "scale", scale, scaleDtype);
    const matrix = this._create(operator, this.#c.sk_gqs_new, GQSMatrix, { values, structure, dtype: "int8", scale }, kind);
    matrix.scaleDtype = scaleDtype;
    return matrix;
  }
  _matrix(operator, create, Type, { values, structure, dtype = "float32", scale = null }) {
    const number = checkChoice(operator, "dtype", dtype, Object.keys(DTYPES));
    if (scale !== null) checkArray(operator, "scale", scale, "float32");
    return this._create(operator, create, Type, { values, structure, dtype, scale }, number);
  }
  // `number` is what `create` takes for the dtype.
  _create(operator, create, Type, { values, structure, dtype, scale }, number) {
    checkArray(operator, "values", values, dtype);
    if (!(structure instanceof Uint8Array)) {
      throw new TypeError(`${operator}: structure must be a Uint8Array, got ${show(structure)}`);
    }
    const held = [];
    try {
      for (const array of [structure, values, scale]) held.push(array === null ? 0 : this._copyIn(array));
      const handle = this._made(create(held[0], structure.byteLength, held[1], values.length, number, held[2], scale?.length ?? 0));
      return new Type(this, this.#c, handle, held, dtype, values.byteLength + structure.byteLength + (scale?.byteLength ?? 0));
    } catch (error) {
      for (const pointer of held) if (pointer !== 0) this.#c.sk_free(pointer);
      throw error;
    }
  }

  /** Packs a dense row-major [rows, cols] array. options.mask: Uint8Array, nonzero = kept. */
  pack(dense, rows, cols, options = {}) {
    const { blockRows = 1 } = options;
    checkChoice("sparsekern.pack", "blockRows", blockRows, [1, 2, 4]);
    return this._pack("sparsekern.pack", dense, rows, cols, options, "sk_packer", (dense, dtype, mask) =>
      this.#c.sk_packer_new(dense, dtype, rows, cols, mask, blockRows));
  }
  /** Packs n of every m columns; a group that keeps more is an error. */
  packNm(dense, rows, cols, options = {}) {
    const { n, m } = options;
    checkChoice("sparsekern.packNm", "m", m, [2, 4, 8, 16, 32]);
    if (!Number.isInteger(n) || n < 1 || n >= m) {
      throw new RangeError(`sparsekern.packNm: n must be an integer in [1, ${m}), got ${show(n)}`);
    }
    return this._pack("sparsekern.packNm", dense, rows, cols, options, "sk_nm_packer", (dense, dtype, mask) =>
      this.#c.sk_nm_packer_new(dense, dtype, rows, cols, mask, n, m));
  }
  /** Packs a bit for each weight and the kept ones behind each other, for bitmapMatrix. */
  packBitmap(dense, rows, cols, options = {}) {
    return this._pack("sparsekern.packBitmap", dense, rows, cols, options, "sk_bitmap_packer", (dense, dtype, mask) =>
      this.#c.sk_bitmap_packer_new(dense, dtype, rows, cols, mask));
  }
  /** Quantizes groups of float32 weights, each to the nearest code, for gqsMatrix. */
  packGqs(dense, rows, cols, options = {}) {
    const operator = "sparsekern.packGqs";
    const { bits = 4, group = 16, scaleDtype = "float16", mask = null } = options;
    checkSize(operator, "rows", rows, 1);
    checkSize(operator, "cols", cols, 1);
    checkChoice(operator, "bits", bits, [2, 4, 8]);
    checkChoice(operator, "group", group, [16, 32, 64, 128]);
    const kind = checkChoice(operator, "scaleDtype", scaleDtype, ["float32", "bfloat16", "float16"]);
    checkArray(operator, "dense", dense, "float32", rows * cols);
    const groups = rows * Math.ceil(cols / group);
    checkMask(operator, mask, groups);
    const c = this.#c;
    const width = ARRAYS[scaleDtype].BYTES_PER_ELEMENT;
    return this._hold((put, allocate) => {
      const denseAt = put(dense);
      const maskAt = mask === null ? allocate(groups) : put(mask);
      const codes = allocate(rows * cols);
      const scale = allocate(groups * width);
      const failed = c.sk_gqs_quantize(denseAt, rows, cols, bits, group, kind, maskAt, Number(mask === null), codes, scale);
      if (failed !== 0) this._fail();
      const packer = this._made(c.sk_gqs_packer_new(codes, rows, cols, maskAt, bits, group, 0, 0));
      const kept = c.sk_gqs_packer_groups(packer) >>> 0;
      const packed = this._fill("sk_gqs_packer", packer, allocate, "int8");
      return { ...packed, scale: new ARRAYS[scaleDtype](this._bytes(scale, kept * width).slice().buffer), scaleDtype };
    });
  }
  _pack(operator, dense, rows, cols, { dtype = "float32", mask = null }, packers, create) {
    checkSize(operator, "rows", rows, 1);
    checkSize(operator, "cols", cols, 1);
    checkChoice(operator, "dtype", dtype, ["float32", "bfloat16", "float16"]);
    checkArray(operator, "dense", dense, dtype, rows * cols);
    checkMask(operator, mask, rows * cols);
    return this._hold((put, allocate) => {
      const denseAt = put(dense);
      const maskAt = mask === null ? 0 : put(mask);
      const packer = this._made(create(denseAt, DTYPES[dtype], maskAt));
      return { ...this._fill(packers, packer, allocate, dtype), dtype, scale: null };
    });
  }
  // Runs work(put an array, allocate bytes) and frees what these two took.
  _hold(work) {
    const held = [];
    const keep = (pointer) => (held.push(pointer), pointer);
    try {
      return work((array) => keep(this._copyIn(array)), (bytes) => keep(this._allocate(bytes)));
    } finally {
      for (const pointer of held) this.#c.sk_free(pointer);
    }
  }
  // The arrays that a packer makes, which is then deleted; `prefix` begins the names of its functions.
  _fill(prefix, packer, allocate, dtype) {
    const call = (name, ...arguments_) => this.#c[`${prefix}_${name}`](packer, ...arguments_);
    try {
      const valueBytes = (call("value_count") >>> 0) * ARRAYS[dtype].BYTES_PER_ELEMENT;
      const structureBytes = call("structure_bytes") >>> 0;
      const values = allocate(valueBytes);
      const structure = allocate(structureBytes);
      call("fill", values, structure);
      return {
        values: new ARRAYS[dtype](this._bytes(values, valueBytes).slice().buffer),
        structure: this._bytes(structure, structureBytes).slice(),
      };
    } finally {
      call("delete");
    }
  }

  /** A file of sparsekern.save_file: { tensors, layers: Map of name -> { matrix, bias, ... } }. */
  checkpoint(bytes) {
    const { tensors, layers: described } = readCheckpoint(bytes);
    const layers = new Map();
    const made = []; // tied layers share one matrix
    try {
      for (const [name, { values, structure, scale, bias, ...spec }] of described) {
        const { create, Type } = FORMATS[spec.kind.split("_")[0]];
        let held = made.find((other) => other.values === values && other.structure === structure && other.scale === scale);
        if (held === undefined) {
          const arrays = { values: values.data, structure: structure.data, dtype: values.dtype, scale: scale?.data ?? null };
          held = { values, structure, scale, matrix: this[create]({ ...arrays, scaleDtype: scale?.dtype }) };
          made.push(held);
        }
        const { matrix } = held;
        if (!(matrix instanceof Type)) {
          throw new RangeError(`sparsekern.checkpoint: layer ${show(name)} must be tied to layers of its format`);
        }
        if (matrix.rows !== spec.shape[0] || matrix.cols !== spec.shape[1]) {
          throw new RangeError(`sparsekern.checkpoint: layer ${show(name)} must have shape ${spec.shape}, got ${matrix.rows},${matrix.cols}`);
        }
        layers.set(name, { ...spec, matrix, bias });
      }
    } catch (error) {
      for (const { matrix } of made) matrix.dispose();
      throw error;
    }
    return { tensors, layers, dispose: () => made.forEach(({ matrix }) => matrix.dispose()) };
  }
}

// What the matrices of all formats share; `kind` begins the names of their functions.
class PackedMatrix {
  #sk;
  #c;
  #kind;
  #handle;
  #held;
  constructor(kind, sk, c, handle, held, dtype, bytes) {
    this.#sk = sk;
    this.#c = c;
    this.#kind = kind;
    this.#handle = handle;
    this.#held = held;
    this.dtype = dtype;
    this.bytes = bytes;
    this.rows = this._c("rows")(handle);
    this.cols = this._c("cols")(handle);
  }
  _c(name) {
    return this.#c[`sk_${this.#kind}_${name}`];
  }
  get _live() {
    if (this.#handle === 0) throw new Error(`${this.constructor.name}: used after dispose()`);
    return this.#handle;
  }

  _call(operator, x, xLength, yLength, options, invoke) {
    const { dtype = "float32", bias = null, activation = "none", out = null } = options;
    const handle = this._live;
    checkChoice(operator, "dtype", dtype, ["float32", "bfloat16", "float16"]);
    const number = checkChoice(operator, "activation", activation, ACTIVATIONS);
    checkArray(operator, "x", x, dtype, xLength);
    if (bias !== null) checkArray(operator, "bias", bias, "float32", this.rows);
    if (out !== null) checkArray(operator, "out", out, dtype, yLength);
    const sk = this.#sk;
    const bytes = ARRAYS[dtype].BYTES_PER_ELEMENT;
    // All memory first: growing it detaches every view.
    if (!(out instanceof Buffer)) sk._reserve("y", yLength * bytes);
    const xAt = sk._place("x", x);
    const biasAt = sk._place("bias", bias);
    const yAt = out instanceof Buffer ? out.pointer : sk._reserve("y", yLength * bytes);
    if (invoke(handle, xAt, yAt, DTYPES[dtype], biasAt, number) !== 0) sk._fail();
    if (out instanceof Buffer) return out;
    const result = new ARRAYS[dtype](this.#c.memory.buffer, yAt, yLength);
    if (out === null) return result.slice();
    out.set(result);
    return out;
  }

  /** y[m, n] = activation(sum_k x[m, k] w[n, k] + bias[n]) for x of options.rows x cols. */
  linear(x, options = {}, ...more) {
    const operator = `${this.#kind}_linear`;
    const length = x instanceof Buffer ? x.length : x?.length;
    const rows = checkSize(operator, "rows", options.rows ?? (length ?? 0) / this.cols);
    return this._call(operator, x, rows * this.cols, rows * this.rows, options, (w, xAt, yAt, dtype, bias, activation) =>
      this._c("linear")(w, xAt, yAt, dtype, rows, this.cols, this.rows, bias, activation, ...more));
  }

  /** The kernel that `linear` runs for so many rows of x, e.g. csr_linear_r1_f32_batch__wasm_simd128. */
  linearKernel(rows, ...more) {
    const count = checkSize(`${this.#kind}_linear`, "rows", rows);
    return this._kernelName("linear_kernel", count, ...more);
  }
  _kernelName(name, ...arguments_) {
    return this.#sk._text(this._c(name)(this._live, ...arguments_));
  }

  /** Dense row-major copy, of the matrix's dtype (int8: without the scale). */
  toDense() {
    return this._unpack(this.dtype);
  }
  _unpack(dtype) {
    const type = ARRAYS[dtype];
    const length = this.rows * this.cols;
    const handle = this._live;
    const pointer = this.#sk._allocate(length * type.BYTES_PER_ELEMENT);
    this._c("unpack")(handle, pointer);
    const dense = new type(this.#c.memory.buffer, pointer, length).slice();
    this.#c.sk_free(pointer);
    return dense;
  }

  dispose() {
    if (this.#handle !== 0) this._c("delete")(this.#handle);
    for (const pointer of this.#held) if (pointer !== 0) this.#c.sk_free(pointer);
    this.#handle = 0;
    this.#held = [];
  }
}

/** A packed matrix in the module's memory; free it with dispose(). */
class CSRMatrix extends PackedMatrix {
  constructor(...arguments_) {
    super("csr", ...arguments_);
    this.blockRows = this._c("block_rows")(this._live);
    this.kept = this._c("kept")(this._live) * this.blockRows;
  }

  /** 1x1 convolution: x [batch, cols, height, width] -> [batch, rows, ceil(height/stride), ...]. */
  conv2d(x, options = {}) {
    const { batch = 1, height, width, stride = 1 } = options;
    checkSize("csr_conv2d", "batch", batch);
    checkSize("csr_conv2d", "height", height);
    checkSize("csr_conv2d", "width", width);
    checkSize("csr_conv2d", "stride", stride, 1);
    const pixels = Math.ceil(height / stride) * Math.ceil(width / stride);
    return this._call("csr_conv2d", x, batch * this.cols * height * width, batch * this.rows * pixels, options, (w, xAt, yAt, dtype, bias, activation) =>
      this._c("conv2d")(w, xAt, yAt, dtype, batch, height, width, stride, bias, activation));
  }
  conv2dKernel() {
    return this._kernelName("conv2d_kernel");
  }
}

/** A matrix that keeps n of every m columns; free it with dispose(). */
class NMMatrix extends PackedMatrix {
  constructor(...arguments_) {
    super("nm", ...arguments_);
    this.n = this._c("n")(this._live);
    this.m = this._c("m")(this._live);
    this.kept = this.rows * (Math.floor(this.cols / this.m) * this.n + Math.min(this.n, this.cols % this.m));
  }
}

/** A matrix with a bit for each weight; free it with dispose(). */
class BitmapMatrix extends PackedMatrix {
  constructor(...arguments_) {
    super("bitmap", ...arguments_);
    this.kept = this._c("kept")(this._live) >>> 0;
  }
}

/** A matrix of quantized groups, kept or pruned whole; free it with dispose(). */
class GQSMatrix extends PackedMatrix {
  constructor(...arguments_) {
    super("gqs", ...arguments_);
    this.bits = this._c("bits")(this._live);
    this.group = this._c("group")(this._live);
    this.zeros = this._c("zeros")(this._live) !== 0;
    this.kept = this._c("kept")(this._live);
  }

  /** options.int8Activations: x is rounded to int8 first, group by group. */
  linear(x, options = {}) {
    return super.linear(x, options, this._int8(options));
  }
  linearKernel(rows, options = {}) {
    return super.linearKernel(rows, this._int8(options));
  }
  _int8({ int8Activations = false }) {
    return checkChoice("gqs_linear", "int8Activations", int8Activations, [false, true]);
  }

  /** Dense row-major copy in float32: the weights themselves, scales and zero-points applied. */
  toDense() {
    return this._unpack("float32");
  }
}

// By the beginning of a layer's kind: the method that makes its matrix, and what that answers.
const FORMATS = {
  csr: { create: "matrix", Type: CSRMatrix },
  nm: { create: "nmMatrix", Type: NMMatrix },
  bitmap: { create: "bitmapMatrix", Type: BitmapMatrix },
  gqs: { create: "gqsMatrix", Type: GQSMatrix },
};
