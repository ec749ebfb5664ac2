// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page faults and mmap.
 *
 * A region's mappings hold normal page-table entries with a page reference and a
 * map count each, so get_user_pages(), smaps and ptrace work as for any file.
 * Their invariant, under the stripe: an entry is empty or maps what the tree has
 * at its index (the zero page for a hole); and it is writable or dirty only while
 * the granule is open (cow.c).
 *
 * The VMAs are VM_DONTEXPAND, which makes them special: the core does not merge
 * them, and userfaultfd and khugepaged, which would make and move entries behind
 * the handler's back, stay out.  They are not VM_MIXEDMAP: a fork(2) of the
 * mapper then copies no entries, and is nearly free.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/mm.h>
#include <linux/printk.h>
#include <linux/sched.h>

#include "around.h"
#include "compat.h"
#include "cowsnap.h"
#include "entries.h"
#include "trace.h"

/* What every hole of every region reads as; only ever mapped read-only. */
static struct page *zero_page;

int cowsnap_fault_module_init(void)
{
	zero_page = alloc_page(GFP_KERNEL | __GFP_ZERO);
	return zero_page ? 0 : -ENOMEM;
}

void cowsnap_fault_module_exit(void)
{
	__free_page(zero_page);
}

/*
 * Is there room for references to the zero page?  A user with enough page tables
 * could map it often enough for its count to overflow.
 */
static bool zero_page_has_room(void)
{
	return page_ref_count(zero_page) < INT_MAX / 2;
}

/* The pages of the region: what lies beyond raises SIGBUS. */
static u64 region_pages(struct vm_fault *vmf)
{
	loff_t size = i_size_read(file_inode(vmf->vma->vm_file));

	return DIV_ROUND_UP((u64)size, PAGE_SIZE);
}

static bool beyond_end(struct vm_fault *vmf)
{
	return vmf->pgoff >= region_pages(vmf);
}

static u64 fault_index(struct cowsnap_region *region, struct vm_fault *vmf)
{
	return cowsnap_page_index(region, vmf->pgoff);
}

/**
 * struct window - the pages that one fault maps
 * @vmf: the fault, on one of them
 * @granule: that one's; NULL for a hole
 * @page: the pages, NULL for one to be left alone; NULL when all are @granule's
 * @addr: where the first of them is mapped
 * @first: which page of the granule that is
 * @nr: how many there are
 * @upgraded: entries that were made writable
 */
struct window {
	struct vm_fault *vmf;
	struct cowsnap_granule *granule;
	struct page **page;
	unsigned long addr;
	unsigned int first;
	unsigned int nr;
	unsigned int upgraded;
};

/* Up to @most pages, an aligned power of two; as many as VMA and region have. */
static void window_init(struct window *window, struct cowsnap_region *region,
			struct vm_fault *vmf, struct cowsnap_granule *granule,
			unsigned int most)
{
	struct vm_area_struct *vma = vmf->vma;
	u64 first, end;

	window->vmf = vmf;
	window->granule = granule;
	window->page = NULL;
	window->addr = vmf->address & PAGE_MASK;
	window->first = 0;
	window->nr = 1;
	window->upgraded = 0;
	most = min(most, cowsnap_granule_pages(region));
	if (most == 1)
		return;
	first = round_down(vmf->pgoff, most);
	end = min(first + most, region_pages(vmf));
	first = max_t(u64, first, vma->vm_pgoff);
	end = min(end, (u64)vma->vm_pgoff + vma_pages(vma));
	window->addr -= (vmf->pgoff - first) << PAGE_SHIFT;
	window->first = cowsnap_page_in_granule(region, first);
	window->nr = end - first;
}

static struct page *window_page(struct window *window, unsigned int n)
{
	if (window->page)
		return window->page[n];
	return window->granule ?
	       cowsnap_granule_page(window->granule, window->first + n) :
	       zero_page;
}

static noinline vm_fault_t fault_error(struct cowsnap_region *region,
				       struct vm_fault *vmf, int err)
{
	switch (err) {
	case -ENOMEM:
		return VM_FAULT_OOM;
	case -EHWPOISON:
		return VM_FAULT_HWPOISON;
	default:
		pr_debug("%s[%d]: fault at %#llx of region %llu: error %d\n",
			 current->comm, task_pid_nr(current),
			 (u64)vmf->pgoff << PAGE_SHIFT, region->id, err);
		return VM_FAULT_SIGBUS;
	}
}

static vm_fault_t fault_result(struct cowsnap_region *region,
			       struct vm_fault *vmf, int err)
{
	trace_cowsnap_fault(region, vmf->pgoff, vmf->flags & FAULT_FLAG_WRITE,
			    err);
	if (likely(!err || err == -EBUSY))
		return VM_FAULT_NOPAGE;
	return fault_error(region, vmf, err);
}

/* How many pages of a granule go to vm_insert_pages() at once. */
#define INSERT_BATCH	16U

/*
 * The pages from the window's page @n on that can be inserted at once: finds them in the
 * window or puts them into @batch.  Ends before one that is to be left alone or is in
 * memory that failed.  Returns how many.
 */
static unsigned int next_batch(struct window *window, unsigned int n,
			       struct page *batch[INSERT_BATCH],
			       struct page ***pages)
{
	unsigned int most = window->nr - n;
	unsigned int nr = 0;

	*pages = batch;
	if (window->page)
		*pages = &window->page[n];
	else
		most = min(most, INSERT_BATCH);
	for (; nr < most; nr++) {
		if (!window->page)
			batch[nr] = window_page(window, n + nr);
		if (!(*pages)[nr] || PageHWPoison((*pages)[nr]))
			break;
	}
	return nr;
}

static noinline int insert_many(struct window *window,
				struct vm_area_struct *vma)
{
	struct page *batch[INSERT_BATCH], **pages;
	unsigned int n = 0;
	int busy = 0;

	while (n < window->nr) {
		unsigned long nr = next_batch(window, n, batch, &pages);
		unsigned long left = nr;
		int err;

		if (!nr) {
			n++;
			continue;
		}
		err = cowsnap_insert_pages(vma, window->addr + n * PAGE_SIZE,
					   pages, &left);
		if (err && err != -EBUSY)
			return err;
		n += nr - left;
		if (err) {
			busy = err;
			n++;
		}
	}
	return busy;
}

static pgprot_t mkdirty(pgprot_t prot)
{
	return __pgprot(pte_val(pte_mkdirty(__pte(pgprot_val(prot)))));
}

/*
 * Makes entries for the pages of @window that have none: -EBUSY when one has, but
 * then the others were made all the same.
 *
 * vm_insert_page() takes the protection from the VMA, whose own is read-only
 * because there is a page_mkwrite; and it wants VM_MIXEDMAP, to be sure that the
 * VMA was prepared for it, as fork(2) would have to know.  A fork(2) need not know
 * of these entries.  So it gets a VMA of its own to read, with what it reads
 * (drm/ttm did the same).
 */
static int insert_window(struct window *window, bool writable)
{
	const struct vm_area_struct *of = window->vmf->vma;
	vm_flags_t flags = of->vm_flags;
	struct vm_area_struct vma = {
		.vm_mm = of->vm_mm,
		.vm_start = of->vm_start,
		.vm_end = of->vm_end,
		.vm_page_prot = vm_get_page_prot(writable ? flags :
							flags & ~VM_SHARED),
	};

	/* A CPU marks it dirty when it is written, but not soft-dirty. */
	if (writable)
		vma.vm_page_prot = mkdirty(vma.vm_page_prot);
	cowsnap_vm_flags_init(&vma, flags | VM_MIXEDMAP);
	/* One that is to be left alone has an entry since the core looked. */
	if (window->nr > 1 || !window_page(window, 0))
		return insert_many(window, &vma);
	return cowsnap_insert_page(&vma, window->addr, window_page(window, 0));
}

/* The page of the fault is in memory that failed. */
static bool is_broken(struct window *window)
{
	unsigned long ahead = window->vmf->address - window->addr;

	return PageHWPoison(window_page(window, ahead >> PAGE_SHIFT));
}

/* Makes an entry writable, if it is one for @page. */
static bool upgrade_pte(struct mm_struct *mm, unsigned long addr, pte_t *ptep,
			struct page *page)
{
	pte_t pte = ptep_get(ptep);

	if (!pte_present(pte) || pte_pfn(pte) != page_to_pfn(page))
		return false;
	pte = pte_mkyoung(pte_mkdirty(cowsnap_pte_mkwrite(pte)));
	set_pte_at(mm, addr, ptep, pte);
	return true;
}

static void upgrade_in_window(pte_t *ptep, unsigned long addr, void *data)
{
	struct window *window = data;
	unsigned int n = (addr - window->addr) >> PAGE_SHIFT;

	window->upgraded += upgrade_pte(window->vmf->vma->vm_mm, addr, ptep,
					window_page(window, n));
}

/*
 * Makes the entries that there are for pages of @window writable; true when all are.
 * Where that is not to be had, there are none any more.
 */
static bool upgrade_window(struct window *window)
{
	struct vm_area_struct *vma = window->vmf->vma;
	unsigned long bytes = window->nr * PAGE_SIZE;

	if (!COWSNAP_ENTRIES_UPGRADE) {
		cowsnap_zap_vma(vma, window->addr, bytes);
		return false;
	}
	cowsnap_entries_visit(vma->vm_mm, window->addr, window->addr + bytes,
			      upgrade_in_window, window);
	return window->upgraded == window->nr;
}

/* All of a granule that was copied, or is the region's own, may be written. */
static noinline int write_window(struct cowsnap_region *region,
				 struct vm_fault *vmf,
				 struct cowsnap_granule *granule)
{
	struct window window;
	int err;

	window_init(&window, region, vmf, granule, UINT_MAX);
	if (is_broken(&window))
		return -EHWPOISON;
	if (vmf->page && cowsnap_granule_pages(region) > 1 &&
	    cowsnap_granule_has(granule, vmf->page) && upgrade_window(&window))
		return 0;
	err = insert_window(&window, true);
	/* Read before, here or by another CPU, while it was read-only. */
	if (err == -EBUSY && !window.upgraded && !upgrade_window(&window))
		err = insert_window(&window, true);
	return err;
}

/**
 * struct upgrade - making the entry of a fault writable
 * @vmf: the fault
 * @done: it is
 */
struct upgrade {
	struct vm_fault *vmf;
	bool done;
};

static void upgrade_of_fault(pte_t *ptep, unsigned long addr, void *data)
{
	struct upgrade *upgrade = data;
	struct vm_fault *vmf = upgrade->vmf;

	upgrade->done = upgrade_pte(vmf->vma->vm_mm, addr, ptep, vmf->page);
}

static int write_fault(struct cowsnap_region *region, struct vm_fault *vmf)
{
	struct upgrade upgrade = { .vmf = vmf };
	struct cowsnap_granule *granule;
	unsigned long addr = vmf->address & PAGE_MASK;

	granule = cowsnap_granule_write(region, fault_index(region, vmf),
					vmf->page);
	if (IS_ERR(granule))
		return PTR_ERR(granule);
	cowsnap_delay(COWSNAP_DELAY_fault_granted);
	/* One page, which is there and was the region's own: it shall be quick. */
	if (COWSNAP_ENTRIES_UPGRADE &&
	    vmf->page == cowsnap_granule_head(granule) &&
	    cowsnap_granule_pages(region) == 1 && !PageHWPoison(vmf->page))
		cowsnap_entries_visit_table(vmf->vma->vm_mm, vmf->pmd, addr,
					    addr + PAGE_SIZE, upgrade_of_fault,
					    &upgrade);
	return upgrade.done ? 0 : write_window(region, vmf, granule);
}

/* Maps what is in a small granule together with what is around it. */
static noinline int insert_around(struct window *window,
				  struct cowsnap_region *region, bool writable)
{
	struct vm_fault *vmf = window->vmf;
	struct cowsnap_around around;

	cowsnap_look_around(&around, region, vmf, region_pages(vmf),
			    writable);
	cowsnap_delay(COWSNAP_DELAY_around_chosen);
	window->page = around.page;
	window->addr = around.addr;
	window->nr = around.nr;
	return insert_window(window, writable);
}

/* Maps data that is read; writable when it may be, for it to be written then. */
static int insert_data(struct window *window, struct cowsnap_region *region,
		       bool writable)
{
	if (is_broken(window))
		return -EHWPOISON;
	if (cowsnap_granule_pages(region) < COWSNAP_READ_WINDOW)
		return insert_around(window, region, writable);
	return insert_window(window, writable);
}

static int read_fault(struct cowsnap_region *region, struct vm_fault *vmf)
{
	u64 index = fault_index(region, vmf);
	struct cowsnap_granule *granule;
	struct window window;

	granule = cowsnap_tree_lookup(&region->tree, index);
	cowsnap_delay(COWSNAP_DELAY_fault_found);
	window_init(&window, region, vmf, granule, COWSNAP_READ_WINDOW);
	if (granule) {
		cowsnap_stripe(region, index)->loaded = index + 1;
		/* What may be written already need not fault again for it. */
		return insert_data(&window, region,
				   (vmf->vma->vm_flags & VM_WRITE) &&
				   cowsnap_tree_is_open(&region->tree, index));
	}
	if (!zero_page_has_room())
		return -EFAULT;
	cowsnap_stripe(region, index)->zero_mapped = true;
	return insert_window(&window, false);
}

/*
 * Both .fault and .page_mkwrite: installs the entry itself, under the stripe, and
 * leaves nothing to be installed by the core after the stripe is let go.
 */
static vm_fault_t region_fault(struct vm_fault *vmf)
{
	struct cowsnap_region *region = vmf->vma->vm_file->private_data;
	struct cowsnap_stripe *stripe;
	int err;

	stripe = cowsnap_stripe_lock(region, fault_index(region, vmf));
	stripe->counts.faults++;
	if (beyond_end(vmf))
		err = -EFAULT;
	else if (vmf->flags & FAULT_FLAG_WRITE)
		err = write_fault(region, vmf);
	else
		err = read_fault(region, vmf);
	mutex_unlock(&stripe->lock);
	cowsnap_delay(COWSNAP_DELAY_fault_done);
	return fault_result(region, vmf, err);
}

/*
 * May the core map all of a snapshot's granule by one PMD?  It looks for that itself
 * when it gets a page of a folio of that size, but 6.1 not at the region's end.  The
 * same for all faults on the addresses of one PMD, until memory fails.
 */
static bool fits_pmd(struct window *window)
{
	return IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) && window->granule &&
	       window->nr << PAGE_SHIFT == PMD_SIZE &&
	       IS_ALIGNED(window->addr, PMD_SIZE) &&
	       !(COWSNAP_PMDS_MAP_FAILED &&
		 cowsnap_folio_has_failed(cowsnap_granule_folio(window->granule)));
}

/*
 * Nothing in a snapshot ever changes, so the core may install what is there; which
 * it has to for a private mapping that is written, and for a PMD.  Entries may be
 * inserted where there is a page table, or where there will be no PMD; not where another
 * fault has made one since this one began.  6.14 may take a table away that is empty:
 * then nothing is inserted, whatever is there instead, and the fault comes again.
 *
 * Over memory that failed there is no new PMD, where the core has marked the folio or
 * this looks.  By one from before it may be mapped; who touches the page then is told
 * by the machine.
 */
static vm_fault_t snapshot_fault(struct vm_fault *vmf)
{
	struct cowsnap_region *region = vmf->vma->vm_file->private_data;
	bool read = !(vmf->flags & FAULT_FLAG_WRITE);
	struct cowsnap_granule *granule;
	struct window window;
	pmd_t pmd;
	int err;

	atomic64_inc(&region->snapshot_faults);
	if (beyond_end(vmf))
		return fault_result(region, vmf, -EFAULT);
	granule = cowsnap_tree_lookup(&region->tree, fault_index(region, vmf));
	cowsnap_delay(COWSNAP_DELAY_snapshot_found);
	if (!granule && !zero_page_has_room())
		return fault_result(region, vmf, -EFAULT);
	window_init(&window, region, vmf, granule, UINT_MAX);
	if (granule && is_broken(&window))
		return fault_result(region, vmf, -EHWPOISON);
	pmd = READ_ONCE(*vmf->pmd);
	if (read && pmd_trans_huge(pmd))
		return fault_result(region, vmf, -EBUSY);
	if (read && !(pmd_none(pmd) && fits_pmd(&window))) {
		window_init(&window, region, vmf, granule, COWSNAP_READ_WINDOW);
		err = granule ? insert_data(&window, region, false) :
				insert_window(&window, false);
		return fault_result(region, vmf, err);
	}
	vmf->page = granule ? cowsnap_page_at(region, granule, vmf->pgoff) :
			      zero_page;
	get_page(vmf->page);
	fault_result(region, vmf, 0);
	return 0;
}

/*
 * Maps nothing.  That it is there lets the core, from 6.6 on, call the other
 * handlers under the VMA lock instead of having them wait for the mmap_lock.
 */
static vm_fault_t no_map_pages(struct vm_fault *vmf, pgoff_t first,
			       pgoff_t last)
{
	return 0;
}

static const struct vm_operations_struct region_vm_ops = {
	.fault = region_fault,
	.page_mkwrite = region_fault,
	.map_pages = no_map_pages,
};

static const struct vm_operations_struct snapshot_vm_ops = {
	.fault = snapshot_fault,
	.map_pages = no_map_pages,
};

/*
 * A private mapping copies a page when it is written, not when it is made: of
 * something that changes that is no snapshot, and is refused.
 */
int cowsnap_region_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct cowsnap_region *region = file->private_data;
	bool shared = vma->vm_flags & VM_SHARED;
	vm_flags_t clear = 0;
	int err;

	if (region->readonly) {
		if (shared && (vma->vm_flags & VM_WRITE))
			return -EPERM;
		if (shared)
			clear = VM_MAYWRITE;
		vma->vm_ops = &snapshot_vm_ops;
	} else {
		if (!shared)
			return -EINVAL;
		err = cowsnap_region_activate(region);
		if (err)
			return err;
		vma->vm_ops = &region_vm_ops;
	}
	cowsnap_vm_flags_mod(vma, VM_DONTEXPAND, clear);
	return 0;
}
