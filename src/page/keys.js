// Optional keyboard shortcuts of the search page: "/" focuses the search box, j and k the next and the previous result;
// n and p open the next and the previous page.
'use strict';
document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest('input, select, textarea')) return;
  const links = [...document.querySelectorAll('.results h2 a')];
  const at = links.indexOf(document.activeElement);
  const target = {
    '/': document.querySelector('#q'),
    j: links[at + 1],
    k: links[at < 0 ? 0 : at - 1],
  }[event.key];
  const page = { n: document.querySelector('a[rel=next]'), p: document.querySelector('a[rel=prev]') }[event.key];
  if (page) page.click();
  if (!target) return;
  event.preventDefault();
  target.focus();
  if (target.select) target.select();
});
