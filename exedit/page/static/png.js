// Masks as PNG files of one bit per pixel, and back.

const CRC = new Uint32Array(256).map((_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function chunk(name, bytes) {
  const whole = new Uint8Array(12 + bytes.length);
  const view = new DataView(whole.buffer);
  view.setUint32(0, bytes.length);
  for (let i = 0; i < 4; i++) whole[4 + i] = name.charCodeAt(i);
  whole.set(bytes, 8);
  let crc = 0xffffffff;
  for (let i = 4; i < whole.length - 4; i++) crc = CRC[(crc ^ whole[i]) & 255] ^ (crc >>> 8);
  view.setUint32(whole.length - 4, ~crc >>> 0);
  return whole;
}

const through = async (bytes, stream) =>
  new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
export const deflate = (bytes) => through(bytes, new CompressionStream('deflate'));
export const inflate = (bytes) => through(bytes, new DecompressionStream('deflate'));

// `packed` has the rows of the picture, each with its filter's byte before eight pixels per byte.
export async function encode(packed, width, height) {
  const head = new Uint8Array(13);
  const view = new DataView(head.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  head[8] = 1; // bits per pixel; the colour type 0 is grey
  const signature = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
  const parts = [signature, chunk('IHDR', head), chunk('IDAT', await deflate(packed)), chunk('IEND', new Uint8Array())];
  return new Blob(parts, { type: 'image/png' });
}

// Calls `put(row, white)` for each row of the picture, with 0 or 1 per pixel. It reads strips, since a
// photo of many megapixels takes four bytes per pixel here.
export async function decode(blob, width, height, put) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: 'none' });
  if (bitmap.width !== width || bitmap.height !== height) {
    throw new Error(`the mask has ${bitmap.width}x${bitmap.height} pixels, the picture ${width}x${height}`);
  }
  const rows = Math.max(1, Math.min(height, Math.floor(2 ** 21 / width)));
  const canvas = document.createElement('canvas');
  canvas.width = width;
  canvas.height = rows;
  const context = canvas.getContext('2d', { willReadFrequently: true });
  const white = new Uint8Array(width);
  for (let top = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    context.drawImage(bitmap, 0, top, width, count, 0, 0, width, count);
    const pixels = context.getImageData(0, 0, width, count).data;
    for (let y = 0; y < count; y++) {
      for (let x = 0; x < width; x++) white[x] = pixels[(y * width + x) * 4] >> 7;
      put(top + y, white);
    }
  }
  bitmap.close();
}
