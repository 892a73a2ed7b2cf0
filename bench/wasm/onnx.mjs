// SPDX-License-Identifier: Apache-2.0
// Writes ONNX models of chains of 1x1 convolutions or linear layers, for a dense runtime to run. Only the few
// messages of onnx.proto that this takes (protobuf: https://protobuf.dev/programming-guides/encoding).

function varint(value) {
  const bytes = [];
  for (let n = BigInt(value); ; n >>= 7n) {
    if (n < 128n) return bytes.concat(Number(n));
    bytes.push(Number(n & 127n) | 128);
  }
}
const integer = (field, value) => Uint8Array.from([...varint(field << 3), ...varint(value)]);
function join(parts) {
  const all = new Uint8Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
function message(field, ...parts) {
  const body = join(parts);
  return join([Uint8Array.from([...varint((field << 3) | 2), ...varint(body.length)]), body]);
}
const text = (field, value) => message(field, new TextEncoder().encode(value));

const attribute = (name, values) => message(5, text(1, name), ...values.map((v) => integer(8, v)), integer(20, 7));
const scalar = (name, value) => message(5, text(1, name), integer(3, value), integer(20, 2));
const node = (type, inputs, output, ...attributes) =>
  message(1, ...inputs.map((name) => text(1, name)), text(2, output), text(4, type), ...attributes);
const tensor = (name, dims, data) =>
  message(5, ...dims.map((d) => integer(1, d)), integer(2, 1), text(8, name),
    message(9, new Uint8Array(data.buffer, data.byteOffset, data.byteLength)));
const value = (field, name, dims) =>
  message(field, text(1, name), message(2, message(1, integer(1, 1), message(2, ...dims.map((d) => message(1, integer(1, d)))))));

/**
 * layers: { cols, rows, size (of the output), stride, weight (dense, [rows, cols]), bias }; each takes what
 * the one before gives. pooled: a stride is a pooling of its own before the convolution.
 */
export function chainModel(layers, pooled) {
  const parts = [];
  let last = "x";
  layers.forEach(({ cols, rows, stride, weight, bias }, i) => {
    if (pooled && stride > 1) {
      parts.push(node("MaxPool", [last], `p${i}`, attribute("kernel_shape", [1, 1]), attribute("strides", [stride, stride])));
      last = `p${i}`;
    }
    const strides = pooled ? [1, 1] : [stride, stride];
    parts.push(node("Conv", [last, `w${i}`, `b${i}`], `c${i}`, attribute("kernel_shape", [1, 1]), attribute("strides", strides)));
    parts.push(node("Relu", [`c${i}`], `y${i}`));
    parts.push(tensor(`w${i}`, [rows, cols, 1, 1], weight), tensor(`b${i}`, [rows], bias));
    last = `y${i}`;
  });
  const first = layers[0];
  const end = layers[layers.length - 1];
  const size = first.size * first.stride;
  return model(parts, value(11, "x", [1, first.cols, size, size]), value(12, last, [1, end.rows, end.size, end.size]));
}

const model = (parts, input, output) =>
  join([integer(1, 8), message(7, ...parts, text(2, "chain"), input, output), message(8, text(1, ""), integer(2, 13))]);

/**
 * layers: { cols, rows, weight (dense, [rows, cols]), bias }, each with relu, on x of xRows rows. gemm: one
 * operator for product and bias; else a product with the transposed weight and a sum.
 */
export function linearModel(layers, xRows, gemm) {
  const parts = [];
  let last = "x";
  layers.forEach(({ cols, rows, weight, bias }, i) => {
    if (gemm) {
      parts.push(node("Gemm", [last, `w${i}`, `b${i}`], `c${i}`, scalar("transB", 1)), tensor(`w${i}`, [rows, cols], weight));
    } else {
      const transposed = Float32Array.from({ length: cols * rows }, (_, n) => weight[(n % rows) * cols + Math.floor(n / rows)]);
      parts.push(node("MatMul", [last, `w${i}`], `p${i}`), node("Add", [`p${i}`, `b${i}`], `c${i}`));
      parts.push(tensor(`w${i}`, [cols, rows], transposed));
    }
    parts.push(node("Relu", [`c${i}`], `y${i}`), tensor(`b${i}`, [rows], bias));
    last = `y${i}`;
  });
  const end = layers[layers.length - 1];
  return model(parts, value(11, "x", [xRows, layers[0].cols]), value(12, last, [xRows, end.rows]));
}
