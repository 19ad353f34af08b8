// The settings of an edit: presets, seeds, and a field for each setting of the weights' system.

import { $, button, complain, el, icon, remember, remembered } from './dom.js';
import { emit, on, state } from './state.js';

const LARGEST_SEED = 2 ** 31 - 1;
const FIRST = ['steps', 'scale', 'strength', 'sampler', 'zoom', 'feather', 'match'];
const SLIDERS = { steps: [1, 100, 1], scale: [1, 15, 0.5], strength: [0, 1, 0.05], feather: [0, 16, 0.5] };
const NAMES = { match: 'match colours', cross: 'hold words', exemplar_fit: 'fit of the exemplar', show_words: 'show words' };
const HIDDEN = ['paste', 'scale_mask']; // the page's masks have the photo's size, and its promise is to paste

const kept = remembered();
const chosen = {
  preset: kept.preset ?? 'quick', values: {}, count: kept.count ?? 4, seed: kept.seed ?? 0, locked: kept.locked ?? false,
};
const fields = new Map(); // name to {read, write, place, error}

const given = () => (state.weights?.settings ?? []).filter(({ name }) => !HIDDEN.includes(name));
const preset = () => state.weights?.presets?.[chosen.preset] ?? {};
const usual = ({ name, default: own }) => preset()[name] ?? own;
export const label = (name) => NAMES[name] ?? name.replaceAll('_', ' ');
export const valueOf = (name) => chosen.values[name] ?? preset()[name] ?? given().find((one) => one.name === name)?.default;

// What a job needs of this: only settings that differ from the preset's and the defaults.
export function request() {
  const name = state.weights.presets?.[chosen.preset] ? chosen.preset : null;
  const seeds = Array.from({ length: chosen.count }, (_, i) => chosen.seed + i);
  return { preset: name, settings: { ...chosen.values }, seeds };
}

// After a run, the next one gets other seeds unless they are locked.
export function nextSeed() {
  if (!chosen.locked) setSeed(Math.floor(Math.random() * (LARGEST_SEED - 100)));
}

function setSeed(seed) {
  chosen.seed = Math.min(LARGEST_SEED - chosen.count, Math.max(0, Math.floor(Number(seed) || 0)));
  remember({ seed: chosen.seed });
  if ($('seed')) $('seed').value = chosen.seed;
}

// Takes the settings of an earlier job, with the seed of one candidate, and locks it.
export function recall(job, seed) {
  chosen.preset = job.preset ?? 'best';
  chosen.values = { ...(job.settings ?? {}) };
  chosen.locked = true;
  draw();
  setSeed(seed);
  emit('settings');
}

// Shows an error that names a setting at its field. Returns whether one was named.
export function complainAbout(text) {
  let placed = false;
  for (const [name, field] of fields) {
    const found = new RegExp(`^(--)?${name}\\b`).test(text);
    complain(field.error, found ? text : '');
    if (!found) continue;
    field.place.closest('details')?.setAttribute('open', '');
    field.place.scrollIntoView({ block: 'nearest' });
    placed = true;
  }
  return placed;
}

function set(name, value) {
  const setting = given().find((one) => one.name === name);
  if (value === null || value === usual(setting)) delete chosen.values[name];
  else chosen.values[name] = value;
  complain(fields.get(name).error);
  $('settings-reset').hidden = !Object.keys(chosen.values).length;
  emit('settings');
}

function number(setting) {
  const { name, type, least, most } = setting;
  const id = `setting-${name}`;
  const box = el('input', { id, type: 'number', inputMode: 'decimal', step: type === 'int' ? 1 : 'any', min: least, max: most, placeholder: 'auto' });
  const limits = SLIDERS[name];
  const slide = limits && el('input', { type: 'range', min: limits[0], max: limits[1], step: limits[2], 'aria-label': label(name) });
  const take = (text) => set(name, text === '' ? null : Number(text));
  box.addEventListener('input', () => { take(box.value); if (slide) slide.value = box.value; });
  slide?.addEventListener('input', () => { box.value = slide.value; take(slide.value); });
  const write = (value) => { box.value = value ?? ''; if (slide) slide.value = value ?? (limits[0] + limits[1]) / 2; };
  return { parts: [slide, box], write };
}

function field(setting) {
  const { name, type, choices, help } = setting;
  const id = `setting-${name}`;
  let parts, write;
  if (choices.length) {
    const select = el('select', { id, onchange: () => set(name, select.value) }, ...choices.map((one) => el('option', { value: one }, one)));
    [parts, write] = [[select], (value) => { select.value = value; }];
  } else if (type === 'bool') {
    const check = el('input', { id, type: 'checkbox', onchange: () => set(name, check.checked) });
    [parts, write] = [[check], (value) => { check.checked = value; }];
  } else if (type === 'int' || type === 'float') {
    ({ parts, write } = number(setting));
  } else {
    const text = el('input', { id, type: 'text', onchange: () => set(name, text.value) });
    [parts, write] = [[text], (value) => { text.value = value ?? ''; }];
  }
  const error = el('p', { class: 'error', role: 'alert', hidden: true });
  const place = el('div', { class: 'field' }, el('label', { htmlFor: id, title: help }, label(name)), el('span', { class: 'control' }, ...parts), error);
  fields.set(name, { write, place, error });
  return place;
}

function presets() {
  const names = Object.keys(state.weights.presets ?? {});
  if (!names.length) return null;
  const says = { quick: 'Few steps, to try', best: "The weights' own settings, for the result that you keep" };
  if (!names.includes(chosen.preset)) chosen.preset = names[0];
  const place = el('div', { class: 'segmented wide', role: 'radiogroup', 'aria-label': 'Preset' });
  for (const name of names) {
    place.append(el('button', {
      type: 'button', role: 'radio', title: says[name] ?? name, data: { preset: name }, 'aria-checked': String(name === chosen.preset),
      onclick: () => { chosen.preset = name; chosen.values = {}; remember({ preset: name }); draw(); emit('settings'); },
    }, name[0].toUpperCase() + name.slice(1)));
  }
  return place;
}

function seeds() {
  const most = state.about.limits.seeds;
  const count = el('select', {
    id: 'count', onchange: () => { chosen.count = Number(count.value); remember({ count: chosen.count }); emit('settings'); },
  }, ...[1, 2, 3, 4, 6, 8, 12, 16].filter((n) => n <= most).map((n) => el('option', { value: n }, n)));
  count.value = chosen.count;
  const seed = el('input', { id: 'seed', type: 'number', min: 0, max: LARGEST_SEED, step: 1, value: chosen.seed, onchange: () => setSeed(seed.value) });
  const lock = button(chosen.locked ? 'lock' : 'unlock', 'Keep the seed for the next run', () => {
    chosen.locked = !chosen.locked;
    remember({ locked: chosen.locked });
    lock.replaceChildren(icon(chosen.locked ? 'lock' : 'unlock'));
    lock.setAttribute('aria-pressed', chosen.locked);
  }, { id: 'seed-lock', class: 'quiet', 'aria-pressed': String(chosen.locked) });
  const dice = button('dice', 'Another seed', () => setSeed(Math.random() * (LARGEST_SEED - 100)), { class: 'quiet' });
  return [
    el('div', { class: 'field' }, el('label', { htmlFor: 'count', title: 'Results of one run, each with its own seed' }, 'candidates'), el('span', { class: 'control' }, count)),
    el('div', { class: 'field' }, el('label', { htmlFor: 'seed', title: 'The first candidate has this seed, the next ones those after it' }, 'seed'), el('span', { class: 'control' }, seed, dice, lock)),
  ];
}

function draw() {
  if (!state.weights) return;
  const open = $('settings').querySelector('details')?.open ?? false;
  fields.clear();
  const known = new Set(given().map(({ name }) => name));
  chosen.values = Object.fromEntries(Object.entries(chosen.values).filter(([name]) => known.has(name)));
  const first = given().filter(({ name }) => FIRST.slice(0, 3).includes(name)).map(field);
  const order = ({ name }) => (FIRST.indexOf(name) + 1 || 99);
  const rest = given().filter(({ name }) => !FIRST.slice(0, 3).includes(name)).sort((a, b) => order(a) - order(b)).map(field);
  $('settings').replaceChildren(...[
    presets(), ...seeds(), ...first,
    rest.length ? el('details', { open }, el('summary', {}, 'More settings'), ...rest) : null,
  ].filter(Boolean));
  for (const setting of given()) fields.get(setting.name).write(chosen.values[setting.name] ?? usual(setting));
  $('settings-reset').hidden = !Object.keys(chosen.values).length;
}

on('weights', draw);
$('settings-reset').addEventListener('click', () => { chosen.values = {}; draw(); emit('settings'); });
