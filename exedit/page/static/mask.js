// The masks of all regions at the photo's own resolution: one byte per pixel, one bit per region.
// Shapes are exact: a pixel belongs to a shape if its centre does. Every change can be undone.

import { decode, encode } from './png.js';

const TILE = 256; // pixels; what a change touches is kept in tiles
const MEMORY = 192 * 2 ** 20; // bytes for all steps of undo

export class Mask extends EventTarget {
  constructor(width, height) {
    super();
    this.width = width;
    this.height = height;
    this.data = new Uint8Array(width * height);
    this.across = Math.ceil(width / TILE);
    this.past = [];
    this.future = [];
    this.step = null; // the change in progress: tiles as they were
    this.counted = new Map(); // bit to number of pixels
  }

  // Changes. A change is begun, made of shapes, and committed or cancelled.

  begin() {
    this.step ??= { tiles: new Map(), also: null };
  }

  // `also`: what else is undone with this change, as {undo, redo}.
  commit(also = null) {
    const step = this.step;
    this.step = null;
    if (!step || (!step.tiles.size && !also)) return;
    step.also = also;
    this.past.push(step);
    this.future = [];
    let held = 0;
    for (let i = this.past.length - 1; i >= 0; i--) {
      held += this.past[i].tiles.size * TILE * TILE;
      if (held > MEMORY && i < this.past.length - 1) { this.past.splice(0, i + 1); break; }
    }
    this.dispatchEvent(new Event('commit'));
  }

  cancel() {
    if (this.step) this.swap(this.step);
    this.step = null;
  }

  undo() { return this.travel(this.past, this.future, 'undo'); }
  redo() { return this.travel(this.future, this.past, 'redo'); }

  travel(from, to, way) {
    this.commit();
    const step = from.pop();
    if (!step) return false;
    this.swap(step);
    step.also?.[way]();
    to.push(step);
    this.dispatchEvent(new Event('commit'));
    return true;
  }

  // Exchanges the kept tiles with the present ones.
  swap(step) {
    for (const [index, kept] of step.tiles) {
      step.tiles.set(index, this.tile(index));
      this.tile(index, kept);
    }
  }

  // A copy of a tile; with `put`, writes it.
  tile(index, put = null) {
    const x0 = (index % this.across) * TILE;
    const y0 = Math.floor(index / this.across) * TILE;
    const [x1, y1] = [Math.min(x0 + TILE, this.width), Math.min(y0 + TILE, this.height)];
    const wide = x1 - x0;
    const copy = put ?? new Uint8Array(wide * (y1 - y0));
    for (let y = y0; y < y1; y++) {
      const at = y * this.width + x0;
      if (put) this.data.set(copy.subarray((y - y0) * wide, (y - y0 + 1) * wide), at);
      else copy.set(this.data.subarray(at, at + wide), (y - y0) * wide);
    }
    if (put) this.touched(x0, y0, x1, y1);
    return copy;
  }

  // Keeps the tiles of a region that is going to change. Bounds are clipped to the picture.
  open(x0, y0, x1, y1) {
    const left = Math.max(0, Math.floor(x0)), top = Math.max(0, Math.floor(y0));
    const right = Math.min(this.width, Math.ceil(x1)), bottom = Math.min(this.height, Math.ceil(y1));
    if (left >= right || top >= bottom) return null;
    this.begin();
    for (let v = Math.floor(top / TILE); v * TILE < bottom; v++) {
      for (let u = Math.floor(left / TILE); u * TILE < right; u++) {
        const index = v * this.across + u;
        if (!this.step.tiles.has(index)) this.step.tiles.set(index, this.tile(index));
      }
    }
    return [left, top, right, bottom];
  }

  touched(x0, y0, x1, y1) {
    this.counted.clear();
    this.dispatchEvent(new CustomEvent('change', { detail: [x0, y0, x1, y1] }));
  }

  // Sets or clears the pixels from x0 to x1 of row y whose centres lie between these.
  span(bit, on, y, x0, x1) {
    const first = Math.max(0, Math.ceil(x0 - 0.5)), last = Math.min(this.width - 1, Math.floor(x1 - 0.5));
    const row = y * this.width;
    if (on) for (let i = row + first; i <= row + last; i++) this.data[i] |= bit;
    else for (let i = row + first; i <= row + last; i++) this.data[i] &= ~bit;
  }

  // Shapes. `on` paints, else erases.

  // All points at most `radius` from the line between two points: a part of a stroke.
  stroke(bit, on, [ax, ay], [bx, by], radius) {
    const r = Math.max(radius, 0.71); // the pixel under the point always counts
    const box = this.open(Math.min(ax, bx) - r, Math.min(ay, by) - r, Math.max(ax, bx) + r, Math.max(ay, by) + r);
    if (!box) return;
    const [dx, dy] = [bx - ax, by - ay];
    const length = Math.hypot(dx, dy);
    const [nx, ny] = length ? [(-dy / length) * r, (dx / length) * r] : [0, 0];
    const corners = [[ax + nx, ay + ny], [bx + nx, by + ny], [bx - nx, by - ny], [ax - nx, ay - ny]];
    for (let y = box[1]; y < box[3]; y++) {
      const v = y + 0.5;
      let low = Infinity, high = -Infinity;
      for (const [cx, cy] of [[ax, ay], [bx, by]]) {
        const half = r * r - (v - cy) ** 2;
        if (half < 0) continue;
        low = Math.min(low, cx - Math.sqrt(half));
        high = Math.max(high, cx + Math.sqrt(half));
      }
      for (let k = 0; length && k < 4; k++) { // where the row crosses the sides
        const [[px, py], [qx, qy]] = [corners[k], corners[(k + 1) % 4]];
        if ((py <= v) === (qy <= v)) continue;
        const x = px + ((v - py) / (qy - py)) * (qx - px);
        low = Math.min(low, x);
        high = Math.max(high, x);
      }
      if (low <= high) this.span(bit, on, y, low, high);
    }
    this.touched(...box);
  }

  rectangle(bit, on, [ax, ay], [bx, by]) {
    const [x0, x1] = [Math.floor(Math.min(ax, bx)), Math.ceil(Math.max(ax, bx))];
    const [y0, y1] = [Math.floor(Math.min(ay, by)), Math.ceil(Math.max(ay, by))];
    const box = this.open(x0, y0, x1, y1);
    if (!box) return;
    for (let y = box[1]; y < box[3]; y++) this.span(bit, on, y, x0, x1);
    this.touched(...box);
  }

  // The inside of a closed line (even-odd would leave holes where it crosses itself).
  polygon(bit, on, points) {
    const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
    const box = this.open(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys));
    if (!box) return;
    for (let y = box[1]; y < box[3]; y++) {
      const v = y + 0.5;
      const crossings = [];
      points.forEach(([px, py], i) => {
        const [qx, qy] = points[(i + 1) % points.length];
        if ((py <= v) !== (qy <= v)) crossings.push([px + ((v - py) / (qy - py)) * (qx - px), py < qy ? 1 : -1]);
      });
      crossings.sort((a, b) => a[0] - b[0]);
      let turns = 0;
      for (let i = 0; i + 1 < crossings.length; i++) {
        turns += crossings[i][1];
        if (turns) this.span(bit, on, y, crossings[i][0], crossings[i + 1][0]);
      }
    }
    this.touched(...box);
  }

  // Fills what is connected with a pixel and bounded by the mask; erasing takes away a connected part.
  fill(bit, on, [px, py]) {
    const [x, y] = [Math.floor(px), Math.floor(py)];
    const { width, height, data } = this;
    const free = (i) => !(data[i] & bit) === on;
    if (x < 0 || y < 0 || x >= width || y >= height || !free(y * width + x)) return;
    const box = this.open(0, 0, width, height);
    const waiting = [x, y];
    while (waiting.length) {
      const v = waiting.pop(), u = waiting.pop();
      const row = v * width;
      if (!free(row + u)) continue;
      let first = u, last = u;
      while (first > 0 && free(row + first - 1)) first--;
      while (last < width - 1 && free(row + last + 1)) last++;
      for (let i = first; i <= last; i++) data[row + i] ^= bit;
      for (const w of [v - 1, v + 1]) {
        if (w < 0 || w >= height) continue;
        for (let i = first; i <= last; i++) {
          const at = w * width + i;
          if (free(at) && (i === first || !free(at - 1))) waiting.push(i, w);
        }
      }
    }
    this.touched(...box);
  }

  invert(bit) {
    const box = this.open(0, 0, this.width, this.height);
    for (let i = 0; i < this.data.length; i++) this.data[i] ^= bit;
    this.touched(...box);
  }

  clear(bit) {
    const box = this.open(0, 0, this.width, this.height);
    for (let i = 0; i < this.data.length; i++) this.data[i] &= ~bit;
    this.touched(...box);
  }

  // Files

  blob(bit) { return encode(this.data, bit, this.width, this.height); }

  // Reads a mask file. how: 'replace', 'add' or 'remove'.
  async read(blob, bit, how = 'replace') {
    const rows = [];
    await decode(blob, this.width, this.height, (y, white) => rows.push(white.slice()));
    const box = this.open(0, 0, this.width, this.height);
    rows.forEach((white, y) => {
      let at = y * this.width;
      for (let x = 0; x < this.width; x++, at++) {
        if (white[x]) { if (how === 'remove') this.data[at] &= ~bit; else this.data[at] |= bit; }
        else if (how === 'replace') this.data[at] &= ~bit;
      }
    });
    this.touched(...box);
  }

  count(bit) {
    if (!this.counted.has(bit)) {
      let n = 0;
      for (let i = 0; i < this.data.length; i++) if (this.data[i] & bit) n++;
      this.counted.set(bit, n);
    }
    return this.counted.get(bit);
  }
  share(bit) { return this.count(bit) / this.data.length; }
}
