// The page: loads what the server knows, and joins the stage, the tools, the panel and the results.

import * as api from './api.js';
import { $, button, complain, debounced, drawIcons, remember, remembered, save, say } from './dom.js';
import { give } from './exemplars.js';
import { help, listen as listenToKeys } from './keys.js';
import * as intake from './intake.js';
import { resume, run } from './jobs.js';
import { listen as listenToResults, nextView, showNewest, view } from './results.js';
import * as settings from './settings.js';
import { Stage } from './stage.js';
import { active, emit, input, inputs, on, pictureById, state } from './state.js';
import './regions.js';

const stage = new Stage($('stage'));
const kept = remembered();

// Tools

const TOOL_BUTTONS = [
  ['brush', 'Brush', 'B', 'brush', false], ['eraser', 'Eraser', 'E', 'brush', true], ['rectangle', 'Rectangle', 'R', 'rectangle'],
  ['lasso', 'Lasso', 'L', 'lasso'], ['fill', 'Fill an outline', 'G', 'fill'], ['select', 'Select an object by a click or a box', 'S', 'select'],
  ['hand', 'Move the photo', 'H', 'hand'],
];

function tool(name, erase = stage.erase) {
  if (name !== 'pick') stage.before = name;
  stage.escape();
  Object.assign(stage, { tool: name, erase });
  if (state.doc && stage.mode !== 'paint' && name !== 'hand') view('paint');
  stage.look();
  stage.draw();
  drawTools();
  hint();
}

function drawTools() {
  for (const one of $('tools').children) {
    const [, , , name, erase] = TOOL_BUTTONS.find(([id]) => id === one.dataset.tool);
    one.setAttribute('aria-pressed', name === stage.tool && (erase === undefined || erase === stage.erase));
  }
  $('add').setAttribute('aria-checked', !stage.erase);
  $('remove').setAttribute('aria-checked', stage.erase);
  const { width, height } = state.doc?.picture ?? { width: 1024, height: 1024 };
  const most = Math.max(width, height) / 2;
  $('size').value = Math.round((100 * Math.log(stage.brush)) / Math.log(most));
  $('size-value').textContent = `${stage.brush} px`;
}

function size(where, factor) {
  const { width, height } = where.picture ?? { width: 1024, height: 1024 };
  const wanted = where.brush * factor;
  const next = factor > 1 ? Math.max(where.brush + 1, Math.round(wanted)) : Math.min(where.brush - 1, Math.round(wanted));
  where.brush = Math.min(Math.round(Math.max(width, height) / 2), Math.max(1, next));
  where.draw('marks');
  drawTools();
}

function change(action) {
  const region = active();
  if (!region || !inputs('mask').length) return;
  state.doc.mask.begin();
  action(state.doc.mask, region.bit);
  state.doc.mask.commit();
  if (stage.mode !== 'paint') view('paint');
}
const invert = () => change((mask, bit) => mask.invert(bit));
const clear = () => change((mask, bit) => mask.clear(bit));

async function selectObject({ detail: { point, box, on: adds } }) {
  const { doc } = state;
  complain($('mask-error'));
  emit('busy', 'Selecting the object');
  try {
    const blob = await api.select({ picture: doc.picture.id, ...(point ? { point } : { box }) });
    await doc.mask.read(blob, active().bit, adds ? 'add' : 'remove');
    doc.mask.commit();
    say('The object is selected.');
  } catch (error) {
    complain($('mask-error'), error.message);
  } finally {
    emit('busy', '');
  }
}

// The photo in work

function showDoc() {
  const { doc } = state;
  $('empty').hidden = Boolean(doc);
  document.body.classList.toggle('has-photo', Boolean(doc));
  if (!doc) {
    stage.show(null, null, null);
    return refresh();
  }
  complain($('mask-error'));
  stage.mode = 'paint';
  stage.show(doc.picture, doc.base, doc.mask);
  const side = Math.max(doc.picture.width, doc.picture.height);
  if (stage.brushOf !== side) Object.assign(stage, { brush: Math.max(1, Math.round(side / 14)), brushOf: side });
  stage.look();
  refresh();
  askFrame();
}

// What depends on the photo, its regions and the weights.
function refresh() {
  const { doc } = state;
  const masks = Boolean(doc) && inputs('mask').length > 0;
  for (const one of document.querySelectorAll('#tools button, #options button, #options input')) one.disabled = !masks;
  for (const id of ['zoom-out', 'zoom-value', 'zoom-in', 'fit']) $(id).disabled = !stage.picture;
  stage.enabled = masks;
  stage.look();
  stage.bits = doc ? doc.regions.reduce((bits, region) => bits | region.bit, 0) : 0;
  stage.active = active()?.bit ?? 1;
  drawUndo();
  drawTools();
  stage.draw();
  hint();
}

function drawUndo() {
  const mask = state.doc?.mask;
  $('undo').disabled = !mask?.past.length;
  $('redo').disabled = !mask?.future.length;
}

// The one thing that is still to do, until the first run.
function hint() {
  const { doc } = state;
  const region = active();
  let text = '';
  if (doc && stage.tool === 'pick') text = 'Drag over the part of the photo that is the exemplar';
  else if (doc && stage.mode === 'paint' && !state.jobs.some((job) => job.picture === doc.picture.id)) {
    const required = inputs('mask')[0]?.required;
    if (required && !doc.mask.count(region.bit)) text = 'Paint over what should change';
    else if (input('exemplar')?.required && !region.exemplar) text = 'Now give a picture of what should appear';
    else if (input('prompt')?.required && !state.texts.prompt.trim()) text = 'Write what the result shows';
    else text = 'Ready: press Run';
  }
  $('hint').textContent = text;
  $('hint').hidden = !text;
}

// The frame shows what the network sees of the photo.
let framing = null;
const askFrame = debounced(450, async () => {
  const { doc, weights } = state;
  framing?.abort();
  const region = active();
  if (!doc || !inputs('mask').length || !doc.mask.count(region.bit)) return stage.set({ frame: null });
  framing = new AbortController();
  const zoom = settings.valueOf('zoom');
  try {
    const found = await api.frame({ weights: weights.name, picture: doc.picture.id, settings: zoom ? { zoom } : {} }, await doc.mask.blob(region.bit), framing.signal);
    if (state.doc !== doc) return;
    stage.set({ frame: [found.x0, found.y0, found.x1, found.y1], seen: `${found.width} × ${found.height}` });
  } catch (error) {
    if (error.name !== 'AbortError') stage.set({ frame: null });
  }
});

// Weights

function chooseWeights(name) {
  const found = state.about.weights.find((one) => one.name === name) ?? state.about.weights[0];
  state.weights = found;
  $('weights').value = found.name;
  remember({ weights: found.name });
  $('notes').replaceChildren(...(found.notes ?? []).map((note) => Object.assign(document.createElement('li'), { textContent: note })));
  $('settings-card').hidden = false;
  $('example').hidden = !input('exemplar');
  const optional = !inputs('photo')[0]?.required;
  $('empty-text').textContent = !inputs('photo').length ? 'These weights make pictures of a text: write the prompt and run.'
    : input('exemplar') ? 'Then paint over what should change, give a picture of what should appear, and run.'
      : optional ? 'Then write what it should show. Or write a prompt and run without a photo.' : 'Then paint over what should change, write what should appear, and run.';
  emit('weights');
  refresh();
  askFrame();
}

// Joins

function listen() {
  for (const [id, title, keys, name, erase] of TOOL_BUTTONS) {
    $('tools').append(button(id, title, () => tool(name, erase ?? stage.erase), { keys, data: { tool: id } }));
  }
  const swap = () => tool(stage.tool, !stage.erase);
  listenToKeys(stage, { run, size, tool, swap, invert, clear, view: nextView });
  const click = (id, action) => $(id).addEventListener('click', action);
  click('undo', () => state.doc.mask.undo());
  click('redo', () => state.doc.mask.redo());
  click('add', () => tool(stage.tool, false));
  click('remove', () => tool(stage.tool, true));
  click('invert', invert);
  click('clear', clear);
  click('mask-download', async () => save(await state.doc.mask.blob(active().bit), `${state.doc.picture.name.replace(/\.[^.]*$/, '')}-mask.png`));
  click('zoom-in', () => stage.zoom(1.25));
  click('zoom-out', () => stage.zoom(0.8));
  click('zoom-value', () => stage.zoom(1 / (stage.scale * devicePixelRatio)));
  click('fit', () => stage.fit());
  click('run', run);
  click('help', help);
  $('size').addEventListener('input', () => {
    const { width, height } = state.doc.picture;
    stage.brush = Math.max(1, Math.round((Math.max(width, height) / 2) ** ($('size').value / 100)));
    stage.keyboard = false;
    $('size-value').textContent = `${stage.brush} px`;
    stage.draw('marks');
  });
  $('weights').addEventListener('change', () => chooseWeights($('weights').value));
  stage.addEventListener('view', () => { $('zoom-value').textContent = `${Math.round(stage.scale * devicePixelRatio * 100)} %`; });
  stage.addEventListener('select', selectObject);
  stage.addEventListener('pick', ({ detail }) => {
    give({ picture: state.doc.picture, box: detail });
    tool(stage.before ?? 'brush');
  });
}

function listenToState() {
  on('pick', () => tool('pick'));
  on('doc', showDoc);
  on('regions', () => { refresh(); askFrame(); });
  on('mask', () => { drawUndo(); hint(); askFrame(); });
  on('settings', askFrame);
  on('texts view jobs recall', hint);
  on('use-weights', (name) => { if (name !== state.weights.name) chooseWeights(name); });
  let timer = 0;
  on('busy', (text) => {
    clearTimeout(timer); // nothing flickers for what is quick
    $('busy-text').textContent = text;
    if (text) timer = setTimeout(() => { $('busy').hidden = false; }, 150);
    else $('busy').hidden = true;
  });
}

async function start() {
  drawIcons();
  listen();
  listenToState();
  listenToResults(stage);
  intake.listen();
  refresh();
  try {
    state.about = await api.about();
    state.pictures = await api.pictures();
  } catch (error) {
    return complain($('banner'), error.message);
  }
  $('weights').replaceChildren(...state.about.weights.map(({ name }) => new Option(name, name)));
  chooseWeights(kept.weights);
  await resume().catch((error) => complain($('banner'), error.message));
  const picture = pictureById(kept.picture);
  if (picture) {
    await intake.open(picture);
    showNewest();
  }
  document.body.dataset.ready = 'true';
}

start();
