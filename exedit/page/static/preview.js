// A picture of the server at the resolution that the screen needs. A large photo is never loaded whole.

const SIDES = [256, 512, 1024, 2048, 4096];

export class Preview {
  // url(side) is the address of the picture scaled to a side.
  constructor(width, height, url) {
    Object.assign(this, { width, height, url, image: null, side: 0, asked: 0, failed: false });
    this.waiting = [];
  }

  // Loads a larger picture if one with this longest side is needed; `ready` is called when it is here.
  want(side, ready) {
    const needed = Math.min(side, Math.max(this.width, this.height));
    const next = SIDES.find((one) => one >= needed) ?? SIDES.at(-1);
    if (next <= this.side) return this.image;
    this.waiting.push(ready);
    if (next > this.asked) {
      this.asked = next;
      this.load(next);
    }
    return this.image;
  }

  async load(side) {
    const image = new Image();
    image.src = this.url(side);
    try {
      await image.decode();
      if (side > this.side) { this.image = image; this.side = side; }
    } catch {
      this.failed = true;
    }
    for (const ready of this.waiting.splice(0)) ready();
  }
}
