// SPDX-License-Identifier: Apache-2.0
/** Sparse matrix products in WebAssembly, for Node 20 or later and browsers. */

export type Tier = "auto" | "relaxed" | "simd128" | "scalar";
/** bfloat16 and float16 are the bits in a Uint16Array. */
export type ActivationDType = "float32" | "bfloat16" | "float16";
export type WeightDType = ActivationDType | "int8";
export type Activation = "none" | "relu" | "relu6" | "gelu" | "gelu_tanh" | "silu" | "hardswish";
export type FloatArray = Float32Array | Uint16Array;
export type WeightArray = FloatArray | Int8Array;

export interface LoadOptions {
  /** "auto" (default) takes the first that the engine has of relaxed, simd128 and scalar. */
  tier?: Tier;
  /** URL of the module, its bytes, or the compiled module. Default: dist/sparsekern-<tier>.wasm. */
  wasm?: string | URL | BufferSource | WebAssembly.Module;
}

/** Whether this engine runs the simd128 module. */
export function hasSimd(): boolean;

/** Whether this engine runs the relaxed module: simd128 with multiply-adds that it may fuse. */
export function hasRelaxedSimd(): boolean;

/** Loads the module. Errors: TypeError for an unknown tier, Error where it cannot be had. */
export function load(options?: LoadOptions): Promise<Sparsekern>;

/** The arrays of the csr, the nm or the bitmap format, docs/formats.md. */
export interface PackedArrays {
  values: WeightArray;
  structure: Uint8Array;
  /** Default float32. */
  dtype?: WeightDType;
  /** [rows], for int8 and for nothing else. */
  scale?: Float32Array | null;
}

export interface PackOptions {
  dtype?: ActivationDType;
  /** rows x cols, nonzero = kept; default: what differs from zero. */
  mask?: Uint8Array | null;
  /** Rows that share a column pattern: 1 (default), 2 or 4. */
  blockRows?: 1 | 2 | 4;
}

export interface PackNmOptions {
  /** Columns that are kept ... */
  n: number;
  /** ... of each group of so many. */
  m: 2 | 4 | 8 | 16 | 32;
  dtype?: ActivationDType;
  /** rows x cols, nonzero = kept; default: what differs from zero. */
  mask?: Uint8Array | null;
}

export interface PackBitmapOptions {
  dtype?: ActivationDType;
  /** rows x cols, nonzero = kept; default: what differs from zero. */
  mask?: Uint8Array | null;
}

/** How the scales of groups are stored; uint8: times a factor of the row. */
export type ScaleDType = ActivationDType | "uint8";

/** The arrays of the gqs format, docs/formats.md. */
export interface GQSArrays {
  values: Int8Array;
  structure: Uint8Array;
  /** One for each kept group, row by row, and then as many zero-points where there are any. */
  scale: Float32Array | Uint16Array | Uint8Array;
  /** Default float16. */
  scaleDtype?: ScaleDType;
}

export interface PackGqsOptions {
  /** Of a weight; default 4. */
  bits?: 2 | 4 | 8;
  /** Consecutive columns that share a scale; default 16. */
  group?: 16 | 32 | 64 | 128;
  /** rows x ceil(cols / group), nonzero = kept; default: groups with a weight that differs from zero. */
  mask?: Uint8Array | null;
  /** Default float16. */
  scaleDtype?: ActivationDType;
}

export interface CallOptions {
  /** Of x and of the result; default float32. */
  dtype?: ActivationDType;
  /** [rows of the matrix] */
  bias?: Float32Array | Buffer | null;
  activation?: Activation;
  /** Where the result goes; a Buffer is written in place. Default: a new array. */
  out?: FloatArray | Buffer | null;
}

export interface LinearOptions extends CallOptions {
  /** Rows of x; default x.length / cols. */
  rows?: number;
}

export interface GQSLinearOptions extends LinearOptions {
  /** Rounds x to int8 first, each group to multiples of its largest magnitude / 127; default false. */
  int8Activations?: boolean;
}

export interface Conv2dOptions extends CallOptions {
  batch?: number;
  height: number;
  width: number;
  stride?: number;
}

/** Memory inside the module: activations that stay there are not copied. May be longer than needed. */
export interface Buffer {
  readonly pointer: number;
  readonly length: number;
  readonly dtype: WeightDType;
  /** A view; take it anew after each call, since memory that grows moves. */
  readonly array: WeightArray;
  dispose(): void;
}

/** What the matrices of all formats have. */
export interface PackedMatrix {
  readonly rows: number;
  readonly cols: number;
  /** Weights stored, zeros in partly filled blocks and groups included. */
  readonly kept: number;
  /** Of the packed arrays. */
  readonly bytes: number;
  readonly dtype: WeightDType;
  /** y[m, n] = activation(sum_k x[m, k] w[n, k] + bias[n]); x is [rows, cols], row-major. */
  linear<Out extends Buffer>(x: FloatArray | Buffer, options: LinearOptions & { out: Out }): Out;
  linear(x: FloatArray | Buffer, options?: LinearOptions): FloatArray;
  /** Name of the kernel that linear runs for so many rows of x. */
  linearKernel(rows: number): string;
  /** Dense, row-major, of the matrix's dtype (int8: without the scale). */
  toDense(): WeightArray;
  /** Frees the packed arrays; later use is an Error. */
  dispose(): void;
}

/** Unstructured, or in blocks of rows. */
export interface CSRMatrix extends PackedMatrix {
  /** 1, 2 or 4 rows share a column pattern. */
  readonly blockRows: number;
  /** 1x1 convolution without padding: x is [batch, cols, height, width]. */
  conv2d<Out extends Buffer>(x: FloatArray | Buffer, options: Conv2dOptions & { out: Out }): Out;
  conv2d(x: FloatArray | Buffer, options: Conv2dOptions): FloatArray;
  conv2dKernel(): string;
}

/** n of every m columns. Each stored weight takes part, a zero too: 0 times infinity is NaN. */
export interface NMMatrix extends PackedMatrix {
  readonly n: number;
  readonly m: number;
}

/** Any pattern, a bit for each weight: for 30 to 75 % zeros. */
export interface BitmapMatrix extends PackedMatrix {}

/** Quantized groups, kept or pruned whole. A code of 0 takes part: 0 times infinity is NaN. */
export interface GQSMatrix extends PackedMatrix {
  readonly dtype: "int8";
  /** Of a weight: 2, 4 or 8. */
  readonly bits: number;
  /** Columns that share a scale. */
  readonly group: number;
  /** Whether groups have zero-points. */
  readonly zeros: boolean;
  readonly scaleDtype: ScaleDType;
  linear<Out extends Buffer>(x: FloatArray | Buffer, options: GQSLinearOptions & { out: Out }): Out;
  linear(x: FloatArray | Buffer, options?: GQSLinearOptions): FloatArray;
  linearKernel(rows: number, options?: { int8Activations?: boolean }): string;
  /** Dense, row-major: the weights themselves, scales and zero-points applied. */
  toDense(): Float32Array;
}

export interface CheckpointTensor {
  readonly dtype: string;
  readonly shape: number[];
  readonly data: ArrayBufferView;
}

interface LayerParts {
  readonly shape: [number, number];
  readonly activation: Activation;
  readonly stride: number;
  /** Whether the layer rounded x to int8 when it was saved: an option of GQSMatrix.linear; csr takes x as it is. */
  readonly int8Activations: boolean;
  readonly bias: Float32Array | null;
}

export interface CSRLayer extends LayerParts {
  readonly kind: "csr_linear" | "csr_conv2d";
  readonly matrix: CSRMatrix;
}

export interface NMLayer extends LayerParts {
  readonly kind: "nm_linear";
  readonly matrix: NMMatrix;
}

export interface BitmapLayer extends LayerParts {
  readonly kind: "bitmap_linear";
  readonly matrix: BitmapMatrix;
}

export interface GQSLayer extends LayerParts {
  readonly kind: "gqs_linear";
  readonly matrix: GQSMatrix;
}

export type CheckpointLayer = CSRLayer | NMLayer | BitmapLayer | GQSLayer;

export interface Checkpoint {
  /** All tensors of the file, by name; tied names share one. */
  readonly tensors: Map<string, CheckpointTensor>;
  /** The packed layers, by the name of their module. */
  readonly layers: Map<string, CheckpointLayer>;
  dispose(): void;
}

export interface Sparsekern {
  readonly version: string;
  /** Instruction sets of the module, e.g. ["scalar", "simd128"]. */
  readonly isa: string[];
  /** Memory inside the module, zeroed. */
  buffer(length: number, dtype?: WeightDType): Buffer;
  /** Checks packed arrays as untrusted input and copies them in. */
  matrix(packed: PackedArrays): CSRMatrix;
  /** The same for the format nm. */
  nmMatrix(packed: PackedArrays): NMMatrix;
  /** The same for the format bitmap. */
  bitmapMatrix(packed: PackedArrays): BitmapMatrix;
  /** The same for the format gqs. */
  gqsMatrix(packed: GQSArrays): GQSMatrix;
  /** Packs a dense row-major [rows, cols] array. */
  pack(dense: FloatArray, rows: number, cols: number, options?: PackOptions): Required<PackedArrays>;
  /** The same for n of every m columns; a group that keeps more is a RangeError, which names it. */
  packNm(dense: FloatArray, rows: number, cols: number, options: PackNmOptions): Required<PackedArrays>;
  /** The same with a bit for each weight. */
  packBitmap(dense: FloatArray, rows: number, cols: number, options?: PackBitmapOptions): Required<PackedArrays>;
  /**
   * Quantizes groups of weights, each to the nearest multiple of the group's largest magnitude / (2^(bits-1) - 1). A
   * weight that is kept must be finite.
   */
  packGqs(dense: Float32Array, rows: number, cols: number, options?: PackGqsOptions): Required<GQSArrays>;
  /** Reads a file that sparsekern.save_file wrote. */
  checkpoint(bytes: ArrayBuffer | Uint8Array): Checkpoint;
}
