// Keys of the whole page, and the sheet that lists them.

import { $, el } from './dom.js';
import { sheetKey, sheetStage } from './exemplars.js';

const LIST = [
  ['Tools', [['B', 'brush'], ['E', 'eraser'], ['X', 'add or remove'], ['R', 'rectangle'], ['L', 'lasso'], ['G', 'fill an outline'], ['S', 'select an object by a click or a box'], ['H', 'hand'], ['[ ]', 'size of the brush'], ['Shift+click', 'straight line'], ['Alt', 'the opposite of add or remove']]],
  ['Mask', [['Ctrl+Z', 'undo'], ['Ctrl+Shift+Z', 'redo'], ['I', 'invert'], ['Delete', 'clear']]],
  ['View', [['Wheel', 'zoom at the pointer'], ['Space', 'move the photo, as the middle button does'], ['+ − 0 1', 'larger, smaller, fit, actual size'], ['hold Tab or O', 'the original'], ['V', 'next view']]],
  ['Run', [['Ctrl+Enter', 'run'], ['Escape', 'take back what is being drawn'], ['Ctrl+V', 'paste a picture'], ['?', 'this list']]],
  ['Without a mouse', [['Arrows', 'move the tool on the photo; Shift far, Alt one pixel'], ['Enter', 'press and release the tool']]],
];

export function help() {
  const dialog = $('help-dialog');
  dialog.replaceChildren(
    el('header', {}, el('h2', { id: 'help-title' }, 'Keys')),
    el('div', { class: 'keys' }, ...LIST.map(([title, keys]) => el('section', {}, el('h3', {}, title),
      el('dl', {}, ...keys.flatMap(([key, text]) => [el('dt', {}, el('kbd', {}, key)), el('dd', {}, text)]))))),
    el('p', { class: 'faint' }, 'Two fingers move and zoom. White in the mask is repainted; every other pixel of the photo keeps its own bytes.'),
    el('footer', { class: 'row' }, el('button', { type: 'button', class: 'primary', onclick: () => dialog.close() }, 'Close')),
  );
  dialog.showModal();
}

const typing = (target) => target.closest?.('textarea, select, [contenteditable], input:not([type=range], [type=checkbox])');

// `actions` has what the keys do: see app.js.
export function listen(main, actions) {
  let moved = -Infinity; // when the mouse last moved over the photo
  main.root.addEventListener('pointermove', (event) => { if (event.pointerType !== 'touch') moved = performance.now(); });
  const watching = (stage) => stage.root.matches(':hover') && performance.now() - moved < 8000;

  addEventListener('keydown', (event) => {
    const control = event.ctrlKey || event.metaKey;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (control && key === 'Enter' && !document.querySelector('dialog[open]')) { event.preventDefault(); return actions.run(); }
    if (typing(event.target)) return;
    const inSheet = sheetStage();
    if (document.querySelector('dialog[open]') && !inSheet) return;
    const stage = inSheet ?? main;
    const taken = control ? withControl(stage, key, event) : plain(stage, key, event, inSheet);
    if (taken) event.preventDefault();
  });

  function withControl(stage, key, event) {
    if (key === 'z') { if (event.shiftKey) stage.mask?.redo(); else stage.mask?.undo(); return true; }
    if (key === 'y') { stage.mask?.redo(); return true; }
    return false;
  }

  function plain(stage, key, event, inSheet) {
    if (key === 'Tab') {
      if (!watching(stage) || inSheet) return false;
      stage.look(true);
      return true;
    }
    if (key === ' ') {
      if (event.target.closest('button, summary, [role=radio], input')) return false;
      stage.space = true;
      stage.look();
      return true;
    }
    if (event.altKey) return false;
    if (key === 'Escape') return stage.escape();
    if (key === '[' || key === ']') { actions.size(stage, key === ']' ? 1.2 : 1 / 1.2); return true; }
    if (key === '+' || key === '=') { stage.zoom(1.25); return true; }
    if (key === '-') { stage.zoom(0.8); return true; }
    if (key === '0') { stage.fit(); return true; }
    if (key === '1') { stage.zoom(1 / (stage.scale * devicePixelRatio)); return true; }
    if (inSheet) return sheetKey(key);
    if (key === 'o') { stage.look(true); return true; }
    const found = {
      b: () => actions.tool('brush', false), e: () => actions.tool('brush', true), r: () => actions.tool('rectangle'), l: () => actions.tool('lasso'),
      g: () => actions.tool('fill'), s: () => actions.tool('select'), h: () => actions.tool('hand'), x: actions.swap, i: actions.invert,
      Delete: actions.clear, Backspace: actions.clear, v: () => actions.view(event.shiftKey), '?': help,
    }[key];
    if (!found) return false;
    found();
    return true;
  }

  addEventListener('keyup', (event) => {
    for (const stage of [main, sheetStage()]) {
      if (!stage) continue;
      if (event.key === ' ') { stage.space = false; stage.look(); }
      if (['Tab', 'o', 'O'].includes(event.key)) stage.look(false);
    }
  });
  addEventListener('blur', () => { main.space = false; main.look(false); });
}
