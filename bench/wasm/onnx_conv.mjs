// SPDX-License-Identifier: Apache-2.0
// Writes ONNX models of a chain of 1x1 convolutions with relu, for a dense runtime to run. Only the few
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
  const graph = message(7, ...parts, text(2, "chain"), value(11, "x", [1, first.cols, size, size]),
    value(12, last, [1, end.rows, end.size, end.size]));
  return join([integer(1, 8), graph, message(8, text(1, ""), integer(2, 13))]);
}
