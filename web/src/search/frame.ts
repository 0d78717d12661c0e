// The frame that shows a cleaned foreign page.
//
// The sandbox allows no scripts, no windows, no forms and no navigation of this page. The content security policy of this page allows
// the frame to navigate nowhere. `allow-same-origin` lets *this* page handle clicks on anchors. Without `allow-scripts`, it gives the
// foreign page no access.
import pageStyle from '@page/style.css?url';

import ownStyle from '../page/page.css?url';
import { h } from '../page/dom';

// The policy of the cleaned page, which allows only this page's style sheets. The policy names the origin, because browsers differ in
// the meaning of 'self' in such a frame.
const policy = () => `default-src 'none'; style-src ${location.origin}; base-uri 'none'; form-action 'none'`;

const escape = (text: string): string => text.replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);

// A frame with the cleaned `html`, as high as its content. `follow` is called with the address of each clicked anchor.
export function frame(html: string, follow: (address: string) => void): HTMLIFrameElement {
  const style = [pageStyle, ownStyle].map((path) => `<link rel="stylesheet" href="${escape(new URL(path, location.href).href)}">`).join('');
  const source =
    `<!doctype html><html><head><meta charset="utf-8"><meta http-equiv="content-security-policy" content="${policy()}">` +
    `<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">${style}</head>` +
    `<body class="framed"><article class="foreign" dir="auto">${html}</article></body></html>`;
  const iframe = h('iframe', {
    class: 'reader', title: 'The page', sandbox: 'allow-same-origin', referrerpolicy: 'no-referrer', srcdoc: source, scrolling: 'no',
  });
  iframe.addEventListener('load', () => {
    const page = iframe.contentDocument;
    if (!page) return;
    const fit = () => {
      iframe.style.height = `${Math.ceil(page.documentElement.getBoundingClientRect().height)}px`;
    };
    fit();
    const observer = new ResizeObserver(() => (iframe.isConnected ? fit() : observer.disconnect()));
    observer.observe(page.documentElement);
    page.addEventListener('click', (event) => {
      const anchor = (event.target as Element | null)?.closest?.('a[href]');
      if (!anchor) return;
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      const address = anchor.getAttribute('href') ?? '';
      if (address.startsWith('#')) page.getElementById(address.slice(1))?.scrollIntoView();
      else follow(address);
    });
  });
  return iframe;
}
