// Keeps what was painted and not yet run, so that a reload of the page loses nothing.

import { debounced } from './dom.js';
import { deflate, inflate } from './png.js';
import { emit, on, pictureById, state } from './state.js';

const open = () => new Promise((done, fail) => {
  const asked = indexedDB.open('exedit', 1);
  asked.onupgradeneeded = () => asked.result.createObjectStore('drafts');
  asked.onsuccess = () => done(asked.result);
  asked.onerror = () => fail(asked.error);
});

async function within(mode, action) {
  const base = await open();
  try {
    return await new Promise((done, fail) => {
      const asked = action(base.transaction('drafts', mode).objectStore('drafts'));
      asked.onsuccess = () => done(asked.result);
      asked.onerror = () => fail(asked.error);
    });
  } finally {
    base.close();
  }
}

const LIMIT = 12; // drafts

const keep = debounced(700, async () => {
  const { doc } = state;
  if (!doc) return;
  const regions = doc.regions.map(({ bit, prompt, exemplar }) => ({
    bit, prompt, exemplar: exemplar && { picture: exemplar.picture.id, box: exemplar.box, cut: exemplar.cut },
  }));
  try {
    const mask = await deflate(doc.mask.data);
    await within('readwrite', (store) => store.put({ regions, active: doc.active, mask, time: Date.now() }, doc.picture.id));
    const all = await within('readonly', (store) => store.getAllKeys());
    if (all.length > LIMIT) {
      const times = await Promise.all(all.map(async (key) => [(await within('readonly', (store) => store.get(key))).time, key]));
      const oldest = times.sort((a, b) => a[0] - b[0])[0][1];
      await within('readwrite', (store) => store.delete(oldest));
    }
  } catch { /* a browser that keeps nothing loses only unfinished masks */ }
});

// Returns whether there was a draft.
export async function restore(doc) {
  try {
    const draft = await within('readonly', (store) => store.get(doc.picture.id));
    const data = draft && (await inflate(draft.mask));
    if (data?.length !== doc.mask.data.length) return false;
    doc.mask.data.set(data);
    doc.regions = draft.regions.map(({ exemplar, ...region }) => {
      const picture = exemplar && pictureById(exemplar.picture);
      return { ...region, exemplar: picture ? { ...exemplar, picture } : null };
    });
    doc.active = Math.min(draft.active, doc.regions.length - 1);
    doc.mask.touched(0, 0, doc.mask.width, doc.mask.height);
    emit('regions');
    emit('mask', doc);
    return true;
  } catch {
    return false;
  }
}

on('mask regions', keep);
