// What the tools do with a press, a move and a release on the stage.

const near = (stage, a, b, pixels) => Math.hypot(a[0] - b[0], a[1] - b[1]) * stage.scale < pixels;
const box = ([ax, ay], [bx, by]) => [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];
const tell = (stage, name, detail) => stage.dispatchEvent(new CustomEvent(name, { detail }));

// Alt turns painting into erasing and back for one gesture.
const paints = (stage) => stage.erase === Boolean(stage.gesture?.alt);

// A point inside the picture.
const inside = ({ picture }, [x, y]) => [Math.min(picture.width, Math.max(0, x)), Math.min(picture.height, Math.max(0, y))];

const brush = {
  down(stage, p) {
    stage.mask.begin();
    const { gesture } = stage;
    // Shift draws a straight line from the end of the last stroke.
    if (gesture.shift && stage.last) stage.mask.stroke(stage.active, paints(stage), stage.last, p, stage.brush / 2);
    gesture.at = p;
    brush.move(stage, p);
  },
  move(stage, p) {
    stage.mask.stroke(stage.active, paints(stage), stage.gesture.at, p, stage.brush / 2);
    stage.gesture.at = p;
  },
  up(stage, p) {
    stage.last = p ?? stage.gesture.at;
    stage.mask.commit();
  },
  cancel(stage) { stage.mask.cancel(); },
};

// A rectangle that is drawn by dragging; `done` gets its corners.
const dragged = (done) => ({
  down(stage, p) { stage.gesture.from = p; },
  up(stage, p) {
    const { from } = stage.gesture;
    done(stage, from, p);
  },
  cancel() {},
  marks(stage, context) {
    const { gesture } = stage;
    if (gesture?.kind === 'tool' && gesture.from && stage.cursor) stage.outline(context, box(gesture.from, stage.cursor), [5, 4]);
  },
});

const rectangle = dragged((stage, from, to) => {
  if (near(stage, from, to, 3)) return;
  stage.mask.begin();
  stage.mask.rectangle(stage.active, paints(stage), from, to);
  stage.mask.commit();
});

const lasso = {
  down(stage, p) { stage.gesture.points = [p]; },
  move(stage, p) {
    const { points } = stage.gesture;
    if (!near(stage, points.at(-1), p, 1)) points.push(p);
  },
  up(stage) {
    const { points } = stage.gesture;
    if (points.length < 3) return;
    stage.mask.begin();
    stage.mask.polygon(stage.active, paints(stage), points);
    stage.mask.commit();
  },
  cancel() {},
  marks(stage, context) {
    const points = stage.gesture?.points;
    if (!points) return;
    stage.twice(context, () => points.forEach((p) => context.lineTo(...stage.toScreen(p))), [5, 4]);
  },
};

const fill = {
  click: true,
  down() {},
  up(stage, p) {
    stage.mask.begin();
    stage.mask.fill(stage.active, paints(stage), p);
    stage.mask.commit();
  },
};

// A click selects the object under it, a drag the object in a box.
const select = dragged((stage, from, to) => {
  const detail = near(stage, from, to, 5) ? { point: from } : { box: box(inside(stage, from), inside(stage, to)) };
  tell(stage, 'select', { ...detail, on: paints(stage) });
});

const pick = dragged((stage, from, to) => {
  const [x0, y0, x1, y1] = box(inside(stage, from), inside(stage, to));
  const found = [Math.floor(x0), Math.floor(y0), Math.ceil(x1), Math.ceil(y1)];
  if (found[2] - found[0] > 1 && found[3] - found[1] > 1) tell(stage, 'pick', found);
});

// The crop of an exemplar: a drag on an edge or corner moves it, inside moves the whole, elsewhere draws anew.
const crop = {
  grip(stage, p) {
    if (!stage.crop) return null;
    const [x0, y0, x1, y1] = stage.crop;
    const reach = 12 / stage.scale;
    const side = (v, low, high) => (Math.abs(v - low) < reach ? -1 : Math.abs(v - high) < reach ? 1 : 0);
    const within = p[0] > x0 - reach && p[0] < x1 + reach && p[1] > y0 - reach && p[1] < y1 + reach;
    const whole = x0 <= 0 && y0 <= 0 && x1 >= stage.picture.width && y1 >= stage.picture.height;
    if (!within) return null;
    const found = [side(p[0], x0, x1), side(p[1], y0, y1)];
    return whole && !found[0] && !found[1] ? null : found; // the whole picture cannot be moved
  },
  down(stage, p) {
    Object.assign(stage.gesture, { from: p, grip: crop.grip(stage, p), old: stage.crop });
  },
  move(stage, p) {
    const { from, grip, old } = stage.gesture;
    const { width, height } = stage.picture;
    const [dx, dy] = [p[0] - from[0], p[1] - from[1]];
    let made;
    if (!grip) {
      made = box(inside(stage, from), inside(stage, p));
    } else if (!grip[0] && !grip[1]) {
      const mx = Math.min(width - old[2], Math.max(-old[0], dx)), my = Math.min(height - old[3], Math.max(-old[1], dy));
      made = [old[0] + mx, old[1] + my, old[2] + mx, old[3] + my];
    } else {
      const moved = [...old];
      if (grip[0]) moved[grip[0] < 0 ? 0 : 2] += dx;
      if (grip[1]) moved[grip[1] < 0 ? 1 : 3] += dy;
      made = box(inside(stage, moved.slice(0, 2)), inside(stage, moved.slice(2)));
    }
    const whole = [Math.floor(made[0]), Math.floor(made[1]), Math.ceil(made[2]), Math.ceil(made[3])];
    if (whole[2] - whole[0] > 1 && whole[3] - whole[1] > 1) stage.crop = whole;
    tell(stage, 'crop', stage.crop);
  },
  up() {},
  cancel(stage) { stage.crop = stage.gesture.old; tell(stage, 'crop', stage.crop); },
  marks(stage, context) {
    if (!stage.crop) return;
    const [[ax, ay], [bx, by]] = [stage.toScreen(stage.crop.slice(0, 2)), stage.toScreen(stage.crop.slice(2))];
    context.fillStyle = 'rgba(0, 0, 0, 0.5)';
    context.beginPath();
    context.rect(0, 0, stage.wide, stage.high);
    context.rect(ax, ay, bx - ax, by - ay);
    context.fill('evenodd');
    stage.outline(context, stage.crop);
    context.fillStyle = '#fff';
    for (const x of [ax, (ax + bx) / 2, bx]) {
      for (const y of [ay, (ay + by) / 2, by]) {
        if (x !== (ax + bx) / 2 || y !== (ay + by) / 2) context.fillRect(x - 4, y - 4, 8, 8);
      }
    }
  },
};

const hand = { down() {}, up() {} };

export const TOOLS = { brush, rectangle, lasso, fill, select, hand, pick, crop };
