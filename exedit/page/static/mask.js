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
    // For each bit the number of its pixels in each tile, -1 where unknown.
    const tiles = this.across * Math.ceil(height / TILE);
    this.tallies = new Map(Array.from({ length: 8 }, (_, k) => [1 << k, new Int32Array(tiles)]));
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

  // The corners of a tile.
  corners(index) {
    const x0 = (index % this.across) * TILE;
    const y0 = Math.floor(index / this.across) * TILE;
    return [x0, y0, Math.min(x0 + TILE, this.width), Math.min(y0 + TILE, this.height)];
  }

  // A copy of a tile; with `put`, writes it.
  tile(index, put = null) {
    const [x0, y0, x1, y1] = this.corners(index);
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
    for (const tally of this.tallies.values()) {
      for (let v = Math.floor(y0 / TILE); v * TILE < y1; v++) {
        tally.fill(-1, v * this.across + Math.floor(x0 / TILE), v * this.across + Math.floor((x1 - 1) / TILE) + 1);
      }
    }
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
    const free = on ? 0 : bit; // what a pixel has that is to change
    if (x < 0 || y < 0 || x >= width || y >= height || (data[y * width + x] & bit) !== free) return;
    const box = this.open(0, 0, width, height);
    const waiting = [x, y];
    while (waiting.length) {
      const v = waiting.pop(), u = waiting.pop();
      const row = v * width;
      if ((data[row + u] & bit) !== free) continue;
      let first = row + u, last = row + u;
      while (first > row && (data[first - 1] & bit) === free) first--;
      while (last < row + width - 1 && (data[last + 1] & bit) === free) last++;
      for (let i = first; i <= last; i++) data[i] ^= bit;
      for (let w = v - 1; w <= v + 1; w += 2) {
        if (w < 0 || w >= height) continue;
        const shift = (w - v) * width;
        let run = false;
        for (let i = first + shift; i <= last + shift; i++) {
          const now = (data[i] & bit) === free;
          if (now && !run) waiting.push(i - w * width, w);
          run = now;
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

  // The number of pixels of a bit in each tile. Only tiles that changed are counted again.
  tally(bit) {
    const tally = this.tallies.get(bit);
    const { data, width } = this;
    tally.forEach((known, index) => {
      if (known >= 0) return;
      const [x0, y0, x1, y1] = this.corners(index);
      let n = 0;
      for (let y = y0; y < y1; y++) for (let i = y * width + x0, end = y * width + x1; i < end; i++) if (data[i] & bit) n++;
      tally[index] = n;
    });
    return tally;
  }

  count(bit) { return this.tally(bit).reduce((sum, n) => sum + n, 0); }
  share(bit) { return this.count(bit) / this.data.length; }

  // The mask of a bit as a PNG file of one bit per pixel. Empty tiles cost nothing.
  blob(bit) {
    const { data, width, height } = this;
    const row = Math.ceil(width / 8) + 1; // each row begins with its filter, 0
    const packed = new Uint8Array(row * height);
    this.tally(bit).forEach((n, index) => {
      if (!n) return;
      const [x0, y0, x1, y1] = this.corners(index);
      for (let y = y0; y < y1; y++) {
        let at = y * row + 1 + x0 / 8;
        for (let i = y * width + x0, end = y * width + x1; i < end; at++) {
          let byte = 0;
          for (let k = 128; k && i < end; k >>= 1, i++) if (data[i] & bit) byte |= k;
          packed[at] = byte;
        }
      }
    });
    return encode(packed, width, height);
  }
}
