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
#include <linux/mm.h>

#include "compat.h"
#include "cowsnap.h"

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
 * The zero page with room for references, or NULL: a user with enough page
 * tables could map it often enough for its count to overflow.
 */
static struct page *get_zero_page(void)
{
	return page_ref_count(zero_page) < INT_MAX / 2 ? zero_page : NULL;
}

static bool beyond_end(struct vm_fault *vmf)
{
	loff_t size = i_size_read(file_inode(vmf->vma->vm_file));

	return vmf->pgoff >= DIV_ROUND_UP((u64)size, PAGE_SIZE);
}

static u64 fault_index(struct cowsnap_region *region, struct vm_fault *vmf)
{
	return vmf->pgoff >> (cowsnap_granule_shift(region) - PAGE_SHIFT);
}

static vm_fault_t fault_error(int err)
{
	switch (err) {
	case 0:
	case -EBUSY:
		return VM_FAULT_NOPAGE;
	case -ENOMEM:
		return VM_FAULT_OOM;
	case -EHWPOISON:
		return VM_FAULT_HWPOISON;
	default:
		return VM_FAULT_SIGBUS;
	}
}

/*
 * Makes an entry for @page, which has none at this address yet; -EBUSY when it
 * has.
 *
 * vm_insert_page() takes the protection from the VMA, whose own is read-only
 * because there is a page_mkwrite; and it wants VM_MIXEDMAP, to be sure that the
 * VMA was prepared for it, as fork(2) would have to know.  A fork(2) need not know
 * of these entries.  So it gets a VMA of its own to read, with what it reads
 * (drm/ttm did the same).
 */
static int insert_entry(struct vm_fault *vmf, struct page *page, bool writable)
{
	vm_flags_t flags = vmf->vma->vm_flags;
	struct vm_area_struct vma = {
		.vm_mm = vmf->vma->vm_mm,
		.vm_start = vmf->vma->vm_start,
		.vm_end = vmf->vma->vm_end,
		.vm_page_prot = vm_get_page_prot(writable ? flags :
							flags & ~VM_SHARED),
	};

	cowsnap_vm_flags_init(&vma, flags | VM_MIXEDMAP);
	return vm_insert_page(&vma, vmf->address, page);
}

struct upgrade {
	struct mm_struct *mm;
	unsigned long pfn;
	bool done;
};

static int upgrade_pte(pte_t *ptep, unsigned long addr, void *data)
{
	struct upgrade *upgrade = data;
	pte_t pte = ptep_get(ptep);

	if (!pte_present(pte) || pte_pfn(pte) != upgrade->pfn)
		return 0;
	pte = pte_mkyoung(pte_mkdirty(cowsnap_pte_mkwrite(pte)));
	set_pte_at(upgrade->mm, addr, ptep, pte);
	upgrade->done = true;
	return 0;
}

/*
 * Makes the entry for @page, if there is one, writable.  A CPU that remembers it
 * as read-only faults again and forgets.
 */
static bool upgrade_entry(struct vm_fault *vmf, struct page *page)
{
	struct upgrade upgrade = {
		.mm = vmf->vma->vm_mm,
		.pfn = page_to_pfn(page),
	};

	apply_to_page_range(upgrade.mm, vmf->address & PAGE_MASK, PAGE_SIZE,
			    upgrade_pte, &upgrade);
	return upgrade.done;
}

static int map_writable(struct vm_fault *vmf, struct page *page)
{
	int err;

	if (vmf->page == page && upgrade_entry(vmf, page))
		return 0;
	err = insert_entry(vmf, page, true);
	/* A read fault on the same address, on another CPU, was first. */
	if (err == -EBUSY && upgrade_entry(vmf, page))
		err = 0;
	return err;
}

static int write_fault(struct cowsnap_region *region, struct vm_fault *vmf)
{
	struct page *page;
	int err;

	err = cowsnap_granule_write(region, fault_index(region, vmf),
				    vmf->page, &page);
	return err ?: map_writable(vmf, page);
}

static int read_fault(struct cowsnap_region *region, struct vm_fault *vmf)
{
	u64 index = fault_index(region, vmf);
	struct cowsnap_granule *granule;
	struct page *page;

	granule = cowsnap_tree_lookup(&region->tree, index);
	if (granule)
		/* What may be written already need not fault again for it. */
		return insert_entry(vmf, cowsnap_granule_page(granule),
				    (vmf->vma->vm_flags & VM_WRITE) &&
				    cowsnap_tree_is_open(&region->tree, index));
	page = get_zero_page();
	if (!page)
		return -EFAULT;
	cowsnap_stripe(region, index)->zero_mapped = true;
	return insert_entry(vmf, page, false);
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

	stripe = cowsnap_stripe(region, fault_index(region, vmf));
	mutex_lock(&stripe->lock);
	stripe->counts.faults++;
	if (beyond_end(vmf))
		err = -EFAULT;
	else if (vmf->flags & FAULT_FLAG_WRITE)
		err = write_fault(region, vmf);
	else
		err = read_fault(region, vmf);
	mutex_unlock(&stripe->lock);
	return fault_error(err);
}

/* Nothing in a snapshot ever changes, so the core may install what is there. */
static vm_fault_t snapshot_fault(struct vm_fault *vmf)
{
	struct cowsnap_region *region = vmf->vma->vm_file->private_data;
	struct cowsnap_granule *granule;
	struct page *page;

	atomic64_inc(&region->snapshot_faults);
	if (beyond_end(vmf))
		return VM_FAULT_SIGBUS;
	granule = cowsnap_tree_lookup(&region->tree, fault_index(region, vmf));
	page = granule ? cowsnap_granule_page(granule) : get_zero_page();
	if (!page)
		return VM_FAULT_SIGBUS;
	get_page(page);
	vmf->page = page;
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
